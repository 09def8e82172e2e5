"""DrMAD: reverse mode along a path that was never stored."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, DTypeLike, PyTree

from ..inner import InnerState
from ..problem import BilevelProblem
from ..stats import Counts, Estimate, Stats, Status, flag
from ..training import Training
from .base import AbstractTrajectoryEstimator
from .common.adjoint import back_to_start, start_adjoint, step_back
from .common.trajectory import check_storage, interpolate, interpolate_cubic, restored, stored


class DrMAD(AbstractTrajectoryEstimator):
    """Reverse mode along the piecewise linear path through `knots` + 1 stored states of training.

        ŝ_t = s_a + (t - a)/(b - a) (s_b - s_a)    for a <= t < b, consecutive knots a, b

    and on it the recursion of `Reverse`. The whole inner state is interpolated, an optimiser's moments too. `knots=1`
    is the straight line of the paper; `knots=T` stores every state and is exact. Step t uses the same key as in
    training.

    **Arguments**

    - `inner`: the inner solver.
    - `knots`: segments of the path, at most the number of inner steps.
    - `cubic`: between knots the cubic through them and the steps after them, exact for segments of up to two steps.
    - `storage`: the floating type in which knots are kept, e.g. `jnp.float16` for half the memory of float32.
    - `max_growth`: once the adjoint on the weights exceeds this multiple of its first size, earlier steps are left out
      and the status is ADJOINT_GROWTH. On points that training never visited the recursion can explode.
    - `warm_start`: train on from where the last step ended.

    *Cost*: as `Reverse`, about 2 to 3 training runs: it saves memory, not time. *Memory*: `knots` + 2 states.
    *Bias*: none if the Hessian and the mixed derivative are constant along the path (quadratic inner loss, λ linear);
    else that of the path, worst at intermediate T. `stats.diagnostics["growth"]` far above 1 is a warning.
    *When not to use it*: at high learning rate and momentum with few knots.

    **Source**: Fu, Luo, Feng, Low, Chua (2016), Algorithm 2 (knots=1); the knots are ours.
    """

    _: dataclasses.KW_ONLY
    knots: int = 1
    max_growth: float = 1e3
    cubic: bool = False
    storage: DTypeLike | None = None

    def __check_init__(self):
        steps = self.inner.num_steps
        if not (isinstance(self.knots, int) and 1 <= self.knots <= steps):
            raise ValueError(f"knots must be between 1 and the number of inner steps {steps}, got {self.knots!r}")
        if isinstance(self.max_growth, int | float) and not self.max_growth > 0:
            raise ValueError(f"max_growth must be positive, got {self.max_growth}")
        check_storage(self.storage)

    @eqx.filter_jit
    def step(
        self, problem: BilevelProblem, hparams: PyTree, state: InnerState, key: Array
    ) -> tuple[Estimate, InnerState]:
        """Trains, keeping the knots, then goes back along the lines between them."""
        training, total = Training(self.inner, problem, hparams, key), self.inner.num_steps
        start = training.begin(state, self.warm_start)
        times = jnp.asarray([j * total // self.knots for j in range(self.knots + 1)], jnp.int32)
        segments = (times[:-1], times[1:])

        def run(state, segment):
            return training.advance(state, *segment), stored(state, self.storage)

        end, knots = jax.lax.scan(run, start, segments)
        value, adjoint = start_adjoint(training, end)

        def after(state, t):
            return training.step(state, t) if self.cubic else None  # lines do not need it

        def back(carry, at):
            adjoint, (right, after_right) = carry
            (first, last), left = at
            left = restored(left, start)
            after_left = after(left, first)

            def unfinished(carry):
                t, adjoint = carry
                return (t >= first) & (adjoint.growth <= self.max_growth)

            def body(carry):
                t, adjoint = carry
                place, length = t - first, last - first
                if self.cubic:
                    point = interpolate_cubic((left, after_left, right, after_right), place, length)
                else:
                    point = interpolate(left, right, place, length)
                return t - 1, step_back(training, point, t, adjoint)

            t, adjoint = jax.lax.while_loop(unfinished, body, (last - 1, adjoint))
            return (adjoint, (left, after_left)), last - 1 - t

        right = (end, after(end, total))
        (adjoint, _), swept = jax.lax.scan(back, (adjoint, right), (segments, knots), reverse=True)
        tame = adjoint.growth <= self.max_growth
        cotangent = optax.tree.where(tame, adjoint.cotangent, optax.tree.zeros_like(adjoint.cotangent))
        adjoint = eqx.tree_at(lambda a: a.cotangent, adjoint, cotangent)
        hypergradient = adjoint.hypergradient
        if not self.warm_start:
            hypergradient = back_to_start(training, start, adjoint)
        counts = Counts(
            iterations=total,
            inner_gradients=self.inner.num_gradients(start, end, total) + (self.knots + 1 if self.cubic else 0),
            step_vjps=jnp.sum(swept),
            outer_gradients=1,
        )
        status = flag(~tame, Status.ADJOINT_GROWTH)
        stats = Stats(counts, status, diagnostics={"growth": adjoint.growth})
        return Estimate(hypergradient, value, end.partitioned, stats), end if self.warm_start else state
