"""The course of a run, step by step."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from .ground.checks import checked, choice, integer
from .ground.show import new_figure, paragraph, save_figure, show, show_leaf
from .ground.total import Total
from .ground.tree import describe, form, named_entries, named_leaves
from .stats import show_status

UNITS = ("iterations", "gradients", "epochs", "seconds")


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["records", "iterations", "gradients", "epochs"],
    meta_fields=[],
    drop_fields=["durations"],
)
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class History:
    """The steps of a run as NumPy arrays, oldest first.

        state, history = hg.run(search, problem, state, key=key, budget=5000)
        len(history), history[-1].value, history[:10], first_half + second_half
        pandas.DataFrame(history.to_dict()).to_csv("history.csv")
        history.plot("criterion.png", unit="gradients")

    - `records`: a `Record`, or what `keep` made of it, with a leading axis of steps.
    - `iterations`, `gradients`: int64, of shape (steps,): what the search had spent after each step, earlier runs
      included.
    - `epochs`: float64, of shape (steps,): the share of the training rows that the search had read by then, as often
      as they were read; see `Counts.rows`.
    - `durations`: float64, of shape (steps,): seconds that each step took. The time of calls that were sent together
      is shared equally by their steps, and the first includes compilation. It is no leaf of the pytree, because no
      repetition gives the same: a history made by `jax.tree.map` has `None` here.

    `value`, `hparams`, `stats` are those of `records`. An integer index gives the record of one step. A slice, a mask
    or an array of indices gives a history. `+` joins two histories.
    """

    records: PyTree
    iterations: np.ndarray
    gradients: np.ndarray
    epochs: np.ndarray
    durations: np.ndarray | None = dataclasses.field(default=None)

    @property
    def value(self) -> np.ndarray:
        """The outer losses, of shape (steps,)."""
        return self.records.value

    @property
    def hparams(self) -> PyTree:
        """The hyperparameters at which `value` was measured, stacked."""
        return self.records.hparams

    @property
    def unmoved(self) -> tuple[str, ...]:
        """Hyperparameters and entries of arrays that are the same at every step, by path and index; () for one step.

        Their hypergradients are zero, see `Estimate.unreached`, or the optimiser or a projection holds them.
        """
        leaves = named_leaves(self.hparams, "hparams") if len(self) > 1 else []
        return tuple(name for path, leaf in leaves for name in named_entries(path, np.all(leaf == leaf[0], axis=0)))

    @property
    def stats(self) -> Any:
        """The `Stats` of all steps, stacked."""
        return self.records.stats

    @property
    def seconds(self) -> np.ndarray:
        """Wall time from the first of these steps to the end of each, of shape (steps,).

        **Raises** `ValueError` where the durations were dropped.
        """
        if self.durations is None:
            raise ValueError("this history has no durations: it was made by jax.tree.map")
        return np.cumsum(self.durations)

    def __len__(self) -> int:
        return len(self.iterations)

    def __getitem__(self, index: Any) -> Any:
        """Returns one record, or a shorter history."""
        taken = jax.tree.map(lambda leaf: leaf[index], self)
        if np.ndim(taken.iterations) == 0:
            return taken.records
        return taken if self.durations is None else dataclasses.replace(taken, durations=self.durations[index])

    def __iter__(self) -> Iterator[PyTree]:
        return (self[step] for step in range(len(self)))

    def __add__(self, other: "History") -> "History":
        """Joins the steps of this history and those of `other`.

        **Raises** `ValueError` where the two hold different things.
        """
        if not isinstance(other, History):
            return NotImplemented
        shorts = [jax.tree.map(lambda leaf: leaf[:0], one.records) for one in (self, other)]
        if form(shorts[0]) != form(shorts[1]):
            raise ValueError(f"the histories hold different records: {' and '.join(map(describe, shorts))}")
        return joined([self, other])

    @checked(integer("max_entries", least=0))
    def to_dict(self, max_entries: int = 32) -> dict[str, np.ndarray]:
        """Returns columns of equal length by name, for `pandas.DataFrame` or a CSV file.

        `iterations`, `gradients`, `epochs` and `seconds` are cumulative. Each entry of a record is a column named by
        its path: `value`, `hparams.log_l2`, `stats.status`, `stats.counts.iterations`, `stats.diagnostics.growth`. An
        array of at most `max_entries` entries is one column per entry, `hparams.log_l2.0`, `hparams.weights.1.2`. A
        larger array is left out; read it from `hparams`. Statuses are integers; `Status(code)` prints their names.
        """
        columns = {"iterations": self.iterations, "gradients": self.gradients, "epochs": self.epochs}
        if self.durations is not None:
            columns["seconds"] = self.seconds
        leaves = jax.tree_util.tree_leaves_with_path(self.records, is_leaf=lambda leaf: isinstance(leaf, Total))
        names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]
        if len(set(names)) < len(names):  # a dot inside a key
            names = [jax.tree_util.keystr(path).removeprefix(".") for path, _ in leaves]
        for name, (_, leaf) in zip(names, leaves, strict=True):
            leaf = np.asarray(leaf)
            for index in np.ndindex(leaf.shape[1:]) if leaf[:1].size <= max_entries else ():
                columns[".".join(filter(None, (name, *map(str, index)))) or "kept"] = leaf[:, *index]
        return columns

    @checked(choice("unit", *UNITS))
    def plot(self, path: str | None = None, unit: str = "iterations") -> Any:
        """Draws the criterion of each step and the best so far against the budget spent.

        `unit` is `iterations`, `gradients`, `epochs` or `seconds`. Values that are not finite are left out. The figure
        is saved where a path is given. Needs matplotlib. Returns the figure.

        **Raises** `ValueError` for another unit.
        """
        figure = new_figure(6, 4)
        spent, values = getattr(self, unit), np.asarray(self.value, np.float64)
        finite = np.isfinite(values)
        axes = figure.subplots()
        axes.plot(spent[finite], values[finite], ".", color="#0072B2", alpha=0.5, label="each step")
        best = np.minimum.accumulate(values[finite])
        axes.plot(spent[finite], best, drawstyle="steps-post", color="#D55E00", label="best so far")
        axes.set_xlabel(unit)
        axes.set_ylabel("outer loss")
        axes.grid(alpha=0.3)
        axes.legend()
        if path is not None:
            save_figure(figure, path)
        return figure

    def __repr__(self) -> str:
        """Shows the number of steps, what they took, and the values or all that was kept."""
        spent = {name: getattr(self, name)[-1:] for name in ("iterations", "gradients", "epochs")}
        if self.durations is not None:
            spent["seconds"] = self.seconds[-1:]
        totals = "".join(f", {name} {show_leaf(number[0])}" for name, number in spent.items() if len(number))
        return paragraph(f"History: {len(self)} steps{totals}", self._lines())

    def _lines(self) -> list[str]:
        try:
            values, status = self.value, self.stats.status
        except AttributeError:
            return [f"records: {show(self.records)}"]
        finite = values[np.isfinite(values)]
        best = f", best {show_leaf(finite.min())}" if len(finite) else ""
        unmoved = [f"unmoved: {', '.join(names)}"] if (names := self.unmoved) else []
        return [
            f"value: {show_leaf(values)}{best}",
            f"status: {show_status(status)}",
            f"hparams: {show(self.hparams)}",
            *unmoved,
        ]


def joined(histories: list[History]) -> History:
    """Joins the steps of several histories of the same kind, in order."""
    whole = jax.tree.map(lambda *leaves: np.concatenate(leaves), *histories)
    durations = [one.durations for one in histories if one.durations is not None]
    return (
        dataclasses.replace(whole, durations=np.concatenate(durations)) if len(durations) == len(histories) else whole
    )
