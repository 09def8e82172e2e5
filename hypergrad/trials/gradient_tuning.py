"""Hypergradients inside a trial: its continuous hyperparameters move by gradient while it is trained."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from ..budget import Budget
from ..estimators.base import ESTIMATOR, AbstractEstimator
from ..ground.checks import checked, function, instance, integer, optimiser, random_key, several
from ..ground.total import Total
from ..history import History
from ..problem import PROBLEM, BilevelProblem
from ..run import run
from ..search.base import Record, SearchState
from ..search.gradient import GradientSearch
from .leaves import Float
from .searcher import SPACE
from .space import PARAMS, Space
from .trial import Result

REPORT = function("report", "(step, value) -> true to stop", optional=True)
HPARAMS = instance("hparams", Mapping, "a dictionary, as hparams(params) returns it")


class NormsState(NamedTuple):
    """Sums of the norms of the gradients that came through, leaf by leaf, and their number."""

    sums: PyTree
    number: Array


def record_norms() -> optax.GradientTransformation:
    """Lets gradients through unchanged, and sums up the norm of each leaf.

    **Example**

        >>> watched = optax.chain(hg.trials.record_norms(), optax.sgd(0.1))
        >>> _, state = watched.update(jnp.array([3.0, 4.0]), watched.init(jnp.zeros(2)))
        >>> float(state[0].sums)
        5.0
    """

    def init(params: PyTree) -> NormsState:
        return NormsState(jax.tree.map(lambda leaf: jnp.zeros((), leaf.dtype), params), jnp.zeros((), jnp.int32))

    def update(updates: PyTree, state: NormsState, params: PyTree | None = None) -> tuple[PyTree, NormsState]:
        sums = jax.tree.map(lambda total, leaf: total + jnp.sqrt(jnp.sum(leaf**2)), state.sums, updates)
        return updates, NormsState(sums, state.number + jnp.int32(1))

    return optax.GradientTransformation(init, update)


class Box(eqx.Module):
    """A projection that keeps each hyperparameter within the range of its leaf."""

    leaves: tuple[tuple[str, Float], ...] = eqx.field(static=True)

    def __call__(self, hparams: dict[str, Array]) -> dict[str, Array]:
        """Returns the nearest values within the ranges."""
        ends = {
            name: np.log([leaf.low, leaf.high]) if leaf.log else (leaf.low, leaf.high) for name, leaf in self.leaves
        }
        return {name: jnp.clip(value, float(ends[name][0]), float(ends[name][1])) for name, value in hparams.items()}


class GradientTuner(eqx.Module):
    """A tuner of some `Float` leaves of a space by hypergradient within each trial.

        tuner = GradientTuner(space, ["decay_a", "decay_b"], estimator, optax.adam(0.3))
        tuner.run(problem, model, trial.params, key=key, budget=3000)      # -> Result, in PerTrial
        tuner.scan(problem, model, tuner.hparams(trial.params), key, 10)  # -> dictionary, in Vmapped

    The losses of `problem` get hparams as a dictionary from names to scalars: logarithms where the leaf has `log`. They
    start at the trial's values and are kept in the leaf's range. The result holds the lowest outer loss, the values
    there as `tuned`, which the searcher is told, and for every block the mean over steps of the norm of its
    hypergradient. A trial keeps its other values for all of its training.

    Make one and use it for all trials: each new one is compiled anew. A trial none of whose hypergradients was finite
    has failed. With masked networks and Adam inside give Adam an `eps_root`: at weights that have no gradient its root
    has no derivative.

    **Raises** `ValueError` for names that are no unconditional `Float` leaves, and for values out of their range.
    """

    leaves: tuple[tuple[str, Float], ...] = eqx.field(static=True)
    search: GradientSearch

    @checked(SPACE, several("names", str, "names of Float leaves"), ESTIMATOR, optimiser("optimiser"))
    def __init__(
        self,
        space: Space,
        names: Sequence[str],
        estimator: AbstractEstimator,
        optimiser: optax.GradientTransformation,
    ):
        leaves = []
        for name in names:
            leaf = space.leaves.get(name)
            if not isinstance(leaf, Float) or leaf.when is not None:
                raise ValueError(f"names has {name!r}, which is not an unconditional Float leaf of the space")
            leaves.append((name, leaf))
        if not leaves:
            raise ValueError("names is empty")
        if len(dict(leaves)) < len(leaves):
            raise ValueError(f"names has a leaf twice: {', '.join(name for name, _ in leaves)}")
        self.leaves = tuple(leaves)
        self.search = GradientSearch(estimator, optax.chain(record_norms(), optimiser), projection=Box(self.leaves))

    @checked(PARAMS)
    def hparams(self, params: Mapping[str, Any]) -> dict[str, Array]:
        """Returns the values that move, as the losses get them."""
        if lacking := [name for name, _ in self.leaves if name not in params]:
            raise ValueError(f"params lacks {lacking[0]!r}")
        values = {}
        for name, leaf in self.leaves:
            try:
                value = leaf.checked(params[name])
            except ValueError as error:
                raise ValueError(f"{name} {error} (in params)") from None
            values[name] = jnp.asarray(np.asarray(np.log(value) if leaf.log else value, float))
        return values

    @checked(PROBLEM, PARAMS, random_key(), integer("chunk", least=1), REPORT)
    def run(
        self,
        problem: BilevelProblem,
        model: PyTree,
        params: Mapping[str, Any],
        *,
        key: Array,
        budget: Budget | int,
        chunk: int = 10,
        report: Callable[[int, float], Any] | None = None,
    ) -> Result:
        """Trains and tunes by `hypergrad.run`. Only an interrupt or `report` ends it early, no NaN.

        `report(step, value)` gets the lowest outer loss so far after every `chunk` hyper-steps. Where it returns true
        the trial ends, with a result that is `pruned`: give `trial.report` for a pruner.
        """
        state = self._init(problem, model, self.hparams(params))
        reports = None if report is None else _Reports(report)
        try:
            with warnings.catch_warnings():  # the result says so
                warnings.filterwarnings("ignore", ".* has no finite result", RuntimeWarning)
                state, _ = run(
                    self.search, problem, state, key=key, budget=budget, chunk=chunk, keep=_nothing, callback=reports
                )
        except FloatingPointError as error:
            state = error.state  # type: ignore[attr-defined]
        found = jax.tree.map(float, self._found(state))
        if not np.isfinite(found["value"]):
            work = {name: found[name] for name in ("iterations", "gradients")}
            return Result.failure("no hypergradient was finite", **work)
        tuned = {name: min(max(found["tuned"][name], leaf.low), leaf.high) for name, leaf in self.leaves}
        return Result(**found | {"tuned": tuned, "pruned": reports is not None and reports.stopped})

    @checked(PROBLEM, HPARAMS, random_key(), integer("steps", least=1))
    def scan(
        self, problem: BilevelProblem, model: PyTree, hparams: Mapping[str, Array], key: Array, steps: int
    ) -> tuple[dict[str, Any], PyTree]:
        """Does the same for `steps` hyper-steps as one pure function: the entries of a result, and the best model."""
        state = self._init(problem, model, dict(hparams))

        def body(state: SearchState, index: Array) -> tuple[SearchState, None]:
            return self.search.step(problem, state, jax.random.fold_in(key, index))[0], None

        state, _ = jax.lax.scan(body, state, jnp.arange(steps))
        return self._found(state), state.best.params

    def _init(self, problem: BilevelProblem, model: PyTree, hparams: dict[str, Array]) -> SearchState:
        try:
            return self.search.init(problem, model, hparams)
        except Exception as error:  # also of an object in the model
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"model (called params below) does not fit problem: {error}") from error

    def _found(self, state: SearchState) -> dict[str, Any]:
        norms: NormsState = state.opt_state[0]
        mean = jax.tree.map(lambda total: total / jnp.maximum(norms.number, 1), norms.sums)
        blocks: dict[str, Any] = {}
        tuned: dict[str, Any] = {}
        for name, leaf in self.leaves:
            if (block := leaf.block) is not None:
                blocks[block] = jnp.hypot(blocks[block], mean[name]) if block in blocks else mean[name]
            value = state.best.hparams[name]
            tuned[name] = jnp.clip(jnp.exp(value) if leaf.log else value, leaf.low, leaf.high)
        moved = state.spent.hyper_updates > 0
        return {
            "value": jnp.where(moved, state.best.value, jnp.nan),
            "tuned": tuned,
            "block_norms": blocks,
            "iterations": Total.of(state.spent.iterations).rounded,
            "gradients": Total.of(state.spent.gradients).rounded,
            "metrics": {"hyper_updates": Total.of(state.spent.hyper_updates).rounded},
        }


@dataclass
class _Reports:
    """The callback of a run that passes the lowest outer loss on, and keeps whether it was told to stop."""

    report: Callable[[int, float], Any]
    stopped: bool = False

    def __call__(self, state: SearchState, history: History) -> bool:
        value = float(state.best.value)
        if np.isfinite(value):
            self.stopped = bool(self.report(int(state.num_steps), value))
        return self.stopped


def _nothing(record: Record) -> tuple[()]:
    return ()
