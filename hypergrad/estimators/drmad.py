"""DrMAD: reverse mode along a path that was never stored."""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, DTypeLike, PyTree

from ..ground.checks import boolean, field, floating_type, integer, real
from ..inner import InnerState
from ..problem import BilevelProblem
from ..stats import Counts, Estimate, Status, flag
from ..training import Training
from .base import AbstractTrajectoryEstimator, checked_step
from .common.accuracy import Stepped, TrajectoryState, with_accuracy
from .common.adjoint import Adjoint, start_adjoint, stats_of, step_back, through_start
from .common.trajectory import (
    discrete,
    interpolate,
    interpolate_cubic,
    restored,
    stored,
    with_discrete,
)


class Path(NamedTuple):
    """Training as it is remembered: first and last step of every segment, the state before each, and what is discrete
    in the solver's state before every step."""

    segments: tuple[Array, Array]
    knots: InnerState
    discrete: PyTree


class DrMAD(AbstractTrajectoryEstimator):
    """Reverse mode along the piecewise linear path through `knots` + 1 stored states of training.

        ŝ_t = s_a + (t - a)/(b - a) (s_b - s_a)    for a <= t < b, consecutive knots a, b

    and on it the recursion of `Reverse`. The whole inner state is interpolated, an optimiser's moments too. `knots=1`
    is the straight line of the paper; `knots=T` stores every state and is exact. Step t uses the same key as in
    training, and the integers, flags and keys that the solver had there, so that gradient accumulation and early
    stopping do what they did.

    **Arguments**

    - `inner`: the inner solver.
    - `knots`: segments of the path, at most the number of inner steps.
    - `cubic`: between knots the cubic through them and the steps after them, exact for segments of up to two steps.
    - `storage`: the floating type in which knots are kept, e.g. `jnp.float16` for half the memory of float32.
    - `max_growth`: once the adjoint on the weights exceeds this multiple of its first size, earlier steps are left out
      and the status is ADJOINT_GROWTH. On points that training never visited the recursion can explode.
    - `warm_start`: train on from where the last step ended.
    - `check`: how the error is measured, see `ErrorCheck`; `None` for not.

    *Cost*: as `Reverse`, about 2 to 3 training runs: it saves memory, not time. *Memory*: `knots` + 2 states, and
    the solver's integers and flags T times.
    *Bias*: none if the Hessian and the mixed derivative are constant along the path (quadratic inner loss, λ linear);
    else that of the path, worst at intermediate T. `stats.diagnostics["growth"]` far above 1 is a warning.
    *When not to use it*: at high learning rate and momentum with few knots.

    **Source**: Fu, Luo, Feng, Low, Chua (2016), Algorithm 2 (knots=1); the knots are ours.

    **Example**

        >>> value, slope = hg.value_and_hypergrad(problem, hg.DrMAD(inner))(log_l2, w, key)
        >>> print(f"{value:.3f} {slope:.3f}")
        0.352 0.263
    """

    _: dataclasses.KW_ONLY
    knots: int = field(integer("knots", least=1), 1)
    max_growth: float = field(real("max_growth", above=0), 1e3)
    cubic: bool = field(boolean("cubic"), False)
    storage: DTypeLike | None = field(floating_type("storage"), None)

    def __check_init__(self) -> None:
        if self.knots > self.inner.num_steps:
            raise ValueError(f"knots must be at most the {self.inner.num_steps} inner steps, got {self.knots}")

    @property
    def is_exact(self) -> bool:
        """True if the path is that of training: segments of one step, or of two where it is cubic."""
        return self.storage is None and -(-self.inner.num_steps // self.knots) <= (2 if self.cubic else 1)

    @checked_step(TrajectoryState)
    @eqx.filter_jit
    def step(self, problem: BilevelProblem, hparams: PyTree, state: TrajectoryState, key: Array) -> Stepped:
        """Trains, keeping the knots, then goes back along the path between them."""
        training, total = Training(self.inner, problem, hparams, key), self.inner.num_steps
        start = training.begin(state.inner, self.warm_start)
        end, path = self._train(training, start)
        value, adjoint = start_adjoint(training, end)
        adjoint, swept = self._sweep(training, start, end, path, adjoint)
        tame = adjoint.growth <= self.max_growth
        cotangent = optax.tree.where(tame, adjoint.cotangent, optax.tree.zeros_like(adjoint.cotangent))
        through = through_start(training, start, self.warm_start, cotangent)
        counts = Counts(
            iterations=total,
            inner_gradients=self.inner.num_gradients(start, end, total) + (self.knots + 1 if self.cubic else 0),
            step_vjps=swept,
            outer_gradients=1,
        )
        stats = stats_of(adjoint, counts, flag(~tame, Status.ADJOINT_GROWTH))
        estimate = Estimate(adjoint.total(hparams, through), value, end.judged, stats)
        return with_accuracy(self, training, state, end, estimate)

    def _train(self, training: Training, start: InnerState) -> tuple[InnerState, Path]:
        total = self.inner.num_steps
        times = jnp.asarray([j * total // self.knots for j in range(self.knots + 1)], jnp.int32)
        log = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (total, *leaf.shape)), discrete(start))

        def advance(t: Array, carry: PyTree) -> PyTree:
            state, log = carry
            write = lambda rows, leaf: jax.lax.dynamic_update_index_in_dim(rows, leaf, t, 0)
            return training.step(state, t), jax.tree.map(write, log, discrete(state))

        def run(carry: PyTree, segment: PyTree) -> tuple[PyTree, PyTree]:
            first, last = segment
            return jax.lax.fori_loop(first, last, advance, carry), stored(carry[0], self.storage)

        segments = (times[:-1], times[1:])
        (end, log), knots = jax.lax.scan(run, (start, log), segments)
        return end, Path(segments, knots, log)

    def _sweep(
        self, training: Training, like: InnerState, end: InnerState, path: Path, adjoint: Adjoint
    ) -> tuple[Adjoint, Array]:
        """Returns the adjoint at the start, and the number of steps gone back."""

        def after(state: InnerState, t: Array | int) -> Any:
            return training.step(state, t) if self.cubic else None  # lines do not need it

        def back(carry: PyTree, at: PyTree) -> tuple[PyTree, Array]:
            adjoint, tame, (right, after_right) = carry
            (first, last), left = at
            left = restored(left, like)
            after_left = after(left, first)

            def unfinished(carry: PyTree) -> Array:
                t, _, tame = carry
                return (t >= first) & tame

            def body(carry: PyTree) -> PyTree:
                t, adjoint, _ = carry
                offset, length = t - first, last - first
                if self.cubic:
                    point = interpolate_cubic((left, after_left, right, after_right), offset, length)
                else:
                    point = interpolate(left, right, offset, length)
                point = with_discrete(point, jax.tree.map(lambda rows: rows[t], path.discrete))
                adjoint = step_back(training, point, t, adjoint)
                return t - 1, adjoint, adjoint.growth_at(t) <= self.max_growth

            t, adjoint, tame = jax.lax.while_loop(unfinished, body, (last - 1, adjoint, tame))
            return (adjoint, tame, (left, after_left)), last - 1 - t

        carry: Any = (adjoint, jnp.bool_(self.max_growth >= 1), (end, after(end, self.inner.num_steps)))
        (adjoint, *_), swept = jax.lax.scan(back, carry, (path.segments, path.knots), reverse=True)
        return adjoint, jnp.sum(swept)
