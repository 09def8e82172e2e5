"""The result of an estimator step: value, hypergradient, counts, status, diagnostics."""

import enum

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, PyTree

from .ground.checks import shown
from .ground.show import paragraph, show, show_leaf, show_size, values_of
from .ground.total import Total
from .ground.tree import PartitionedModel, all_finite, named_entries, named_leaves, partition

Count = Array | Total
CountLike = ArrayLike | Total


class Status(enum.IntFlag):
    """Run-time trouble, as flags that add up: `Status(int(estimate.stats.status))` names them.

    **Example**

        >>> str(hg.Status.INACCURATE | hg.Status.ADJOINT_GROWTH)
        'ADJOINT_GROWTH|INACCURATE'
    """

    OK = 0
    NONFINITE = 1  # the value or the hypergradient holds NaN or infinity
    INNER_UNCONVERGED = 2  # an implicit estimator was used away from a stationary point
    LINEAR_UNCONVERGED = 4  # the linear solve stopped at its budget
    NEGATIVE_CURVATURE = 8  # the Hessian is not positive definite there
    ADJOINT_GROWTH = 16  # the adjoint outgrew its limit and was cut off
    IRREVERSIBLE = 32  # training run backwards did not come back to where it began
    INACCURATE = 64  # the hypergradient was measured to be far from the derivative of the value, or is lost in float16

    def __str__(self) -> str:
        return self.name or "OK"

    def __format__(self, form: str) -> str:
        return format(str(self), form)


class Counts(eqx.Module):
    """Work done: int32 scalars for one step, a `Total`, which cannot overflow, for all that a search has spent.

    `gradients` sums it up in units of one inner gradient: gradients, Hessian-vector products and evaluations count 1,
    step-VJPs, which go forwards and backwards through a gradient, 2. Measured on a CPU: 0.9 to 1.1 for a product, 1.4
    to 2.0 for a step-VJP, below 0.5 for an evaluation; `python -m experiments.benchmarks.cost` measures the first two.
    What the outer loss does is not seen: a gradient or an evaluation of one that draws many samples, or takes a
    determinant, counts 1 and may cost hundreds. There give a budget in `seconds`; a cheap `holdout` of `run` chooses
    the best without such evaluations.

    A gradient is one of all rows, or of a batch where the data are `Batches`: `SABA`, which cuts the data into n
    batches itself, completes one every n-th step. A loss that draws its own minibatch counts 1, because nothing tells
    what it reads.

    `rows` is counted by searches: what all gradients, products and step-VJPs of the inner loss have read of `train`.
    Divided by the number of rows it is a number of epochs. Data without a common leading axis are one row.

    **Example**

        >>> print(hg.evaluate(inner, problem, w, log_l2, key).stats.counts)
        Counts: iterations 20, inner_gradients 20, step_vjps 0, hvps 0, ..., gradients 20
    """

    iterations: Count  # updates of the model's parameters
    inner_gradients: Count
    step_vjps: Count
    hvps: Count  # Hessian-vector and mixed-derivative products
    outer_gradients: Count
    evaluations: Count  # of the outer loss, again, where it is random and a step may become the best
    hyper_updates: Count
    rows: Count  # of the training data, as often as they were read

    def __init__(
        self,
        *,
        iterations: CountLike = 0,
        inner_gradients: CountLike = 0,
        step_vjps: CountLike = 0,
        hvps: CountLike = 0,
        outer_gradients: CountLike = 0,
        evaluations: CountLike = 0,
        hyper_updates: CountLike = 0,
        rows: CountLike = 0,
    ):
        self.iterations = _count("iterations", iterations)
        self.inner_gradients = _count("inner_gradients", inner_gradients)
        self.step_vjps = _count("step_vjps", step_vjps)
        self.hvps = _count("hvps", hvps)
        self.outer_gradients = _count("outer_gradients", outer_gradients)
        self.evaluations = _count("evaluations", evaluations)
        self.hyper_updates = _count("hyper_updates", hyper_updates)
        self.rows = _count("rows", rows, wide=True)

    @property
    def gradients(self) -> Count:
        """Gradient equivalents."""
        return self.inner_equivalents + self.outer_gradients + self.evaluations

    @property
    def inner_equivalents(self) -> Count:
        """Gradient equivalents of the inner loss."""
        return self.inner_gradients + self.hvps + self.step_vjps + self.step_vjps

    @property
    def totals(self) -> "Counts":
        """The same counts as totals."""
        if all(isinstance(count, Total) for count in vars(self).values()):
            return self
        return Counts(**{name: Total.of(count) for name, count in vars(self).items()})

    @property
    def summed(self) -> "Counts":
        """The sum of counts with a leading axis."""
        return jax.lax.scan(lambda total, one: (total + one, None), Counts(), self)[0]

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(**{name: count + getattr(other, name) for name, count in vars(self).items()})

    def __repr__(self) -> str:
        """Shows all counts by name, and the gradient equivalents."""
        shapes = any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(self))  # no sum of shapes
        found = vars(self) | ({} if shapes else {"gradients": self.gradients})
        return "Counts: " + ", ".join(f"{name} {show(count)}" for name, count in found.items())


class Stats(eqx.Module):
    """The work and the trouble of one estimator step.

    - `counts`: work done.
    - `status`: `Status` flags.
    - `residual`: relative residual of the linear solve, 0 where there is none.
    - `diagnostics`: further scalars by name, the same names at every step of one estimator.

    **Example**

        >>> print(hg.evaluate(inner, problem, w, log_l2, key).stats)
        Stats: OK
          Counts: iterations 20, inner_gradients 20, step_vjps 0, hvps 0, outer_gradients 0, ...
          residual 0
    """

    counts: Counts
    status: Array
    residual: Array
    diagnostics: dict[str, Array]

    def __init__(
        self,
        counts: Counts,
        status: ArrayLike = Status.OK,
        residual: ArrayLike = 0.0,
        diagnostics: dict[str, Array] | None = None,
    ):
        self.counts = counts
        self.status = jnp.asarray(status, jnp.int32)
        self.residual = jnp.asarray(residual, jnp.result_type(residual))
        self.diagnostics = diagnostics or {}

    def also(self, counts: Counts, status: ArrayLike = Status.OK) -> "Stats":
        """Returns these with more work and more flags."""
        return Stats(self.counts + counts, self.status | status, self.residual, self.diagnostics)

    def __repr__(self) -> str:
        """Shows flags by name, counts, residual and diagnostics."""
        return paragraph(f"Stats: {show_status(self.status)}", self.lines())

    def lines(self) -> tuple[str, str]:
        """Returns the counts, and all else but the status, as texts."""
        return repr(self.counts), show({"residual": self.residual} | self.diagnostics)


class Estimate(eqx.Module):
    """The result of one estimator step.

    - `hypergradient`: like `hparams`.
    - `value`: the outer loss at (trained model, hparams) *before* any hyperparameter moves.
    - `params`: the trained model, whole.
    - `stats`: a `Stats`.
    """

    hypergradient: PyTree
    value: Array
    partitioned: PartitionedModel
    stats: Stats

    def __init__(self, hypergradient: PyTree, value: Array, params: PyTree, stats: Stats):
        finite = all_finite((value, hypergradient))
        status = stats.status | jnp.where(finite, Status.OK, Status.NONFINITE).astype(jnp.int32)
        self.hypergradient = hypergradient
        self.value = value
        self.partitioned = partition(params)
        self.stats = eqx.tree_at(lambda s: s.status, stats, status)

    @property
    def unreached(self) -> tuple[str, ...]:
        """Hyperparameters and entries of arrays whose hypergradient is exactly zero, by path and index.

        An entry that no step reads, such as a rate for a step beyond the last, and one without effect, such as the
        penalty of a weight whose input is always zero, are both among them.
        """
        leaves = named_leaves(self.hypergradient, "hparams")
        return tuple(name for path, leaf in leaves for name in named_entries(path, np.asarray(leaf) == 0))

    @property
    def params(self) -> PyTree:
        """The trained model, whole."""
        return self.partitioned.model

    def __repr__(self) -> str:
        """Shows value, flags, hypergradient, the size of the model, and what the step took."""
        return paragraph(
            f"Estimate: value {show(self.value)}, {show_status(self.stats.status)}",
            (
                f"hypergradient: {show(self.hypergradient)}",
                f"params: {show_size(self.partitioned)}",
                *self.stats.lines(),
            ),
        )


def _count(name: str, number: CountLike, wide: bool = False) -> Count:
    """Returns a total, or where it is `wide` any integer, as a total; other integers as int32.

    **Raises** `TypeError` or `ValueError` by name for what is no integer, or too large.
    """
    if isinstance(number, Total | jax.ShapeDtypeStruct):  # a shape has been a number before
        return number
    try:
        kind = jnp.result_type(number)
        flags = isinstance(number, jax.Array) and jnp.issubdtype(kind, jnp.bool_)
        if isinstance(number, np.ma.MaskedArray) or not (flags or jnp.issubdtype(kind, jnp.integer)):
            raise TypeError
        return Total.of(number) if wide else jnp.asarray(number, jnp.int32)
    except (OverflowError, ValueError) as error:
        raise ValueError(f"{name} cannot be counted: {error}") from None
    except Exception:
        raise TypeError(f"{name} must be an integer, or an array of integers, got {shown(number)}") from None


def show_status(status: ArrayLike) -> str:
    """Returns the names of the flags; of many statuses, how often each occurs."""
    codes = values_of(status)
    if codes is None:
        return show_leaf(status)
    if codes.ndim == 0:
        return str(Status(int(codes)))
    found, times = np.unique(codes, return_counts=True)
    return ", ".join(f"{Status(int(code))} ({number})" for code, number in zip(found, times, strict=True)) or "no steps"


def flag(condition: Array, status: Status) -> Array:
    """Returns `status` where the condition holds, else OK."""
    return jnp.where(condition, jnp.int32(status), jnp.int32(Status.OK))
