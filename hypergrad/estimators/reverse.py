"""Exact reverse mode through the whole of training."""

import dataclasses
import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, DTypeLike, PyTree

from ..ground.checks import Rule, field, floating_type, integer
from ..ground.tree import cast_like, in_single
from ..inner import InnerState
from ..problem import BilevelProblem
from ..stats import Counts, Estimate
from ..training import Training
from .base import AbstractTrajectoryEstimator, checked_step
from .common.accuracy import Stepped, TrajectoryState, checked
from .common.adjoint import Adjoint, start_adjoint, stats_of, sweep, through_start, through_state
from .common.trajectory import record

COUNT = integer("checkpoints", least=1)
CHECKPOINTS = Rule(
    "checkpoints",
    '"sqrt" or a positive integer',
    lambda value: value if isinstance(value, str) and value == "sqrt" else COUNT.convert(value),
    optional=True,
)


class Reverse(AbstractTrajectoryEstimator):
    """Reverse mode through the last `horizon` of T training steps; the yardstick of all others.

        dF/dλ = ∂_λ F + Σ_t B_tᵀ c_{t+1},    c_T = ∇_w F,    c_t = A_tᵀ c_{t+1}

    with A_t = ∂Φ/∂(w, s) and B_t = ∂Φ/∂λ at step t. Every step is rematerialised: the states are stored, not what is
    inside a step, so memory does not grow with T times the data.

    **Arguments**

    - `inner`: the inner solver.
    - `checkpoints`: `None` stores every state; `"sqrt"`, or a number, stores so many states and recomputes the rest.
    - `storage`: the floating type in which states are kept, e.g. `jnp.float16` for half the memory of float32, with
      rounding errors in the path and none in the recursion; `None` keeps the type.
    - `horizon`: the number of last steps differentiated; `None` is all. `horizon=K` frozen at a fixed point is the
      K-term Neumann series.
    - `warm_start`: train on from where the last step ended (what came before counts as constant).
    - `check`: how the error of `horizon` and `storage` is measured, see `ErrorCheck`; `None` for not.

    *Cost*: about 2 to 3 training runs, 3 to 4 with checkpoints. *Memory*: T states, or about 2 √T.
    *Bias*: none; with `horizon` K, of order ρ^K on strongly convex problems with contraction ρ.
    *When not to use it*: when T states do not fit; see `DrMAD` and `checkpoints`.
    `stats.diagnostics["growth"]`: the largest ‖c_t‖/‖c_T‖. Far above 1 the hypergradient itself is ill-conditioned.

    **Source**: Domke (2012); Maclaurin, Duvenaud, Adams (2015); Shaban et al. (2019) for the horizon.
    """

    _: dataclasses.KW_ONLY
    checkpoints: int | str | None = field(CHECKPOINTS, None)
    horizon: int | None = field(integer("horizon", least=1, optional=True), None)
    storage: DTypeLike | None = field(floating_type("storage"), None)

    def __check_init__(self) -> None:
        if self.horizon is not None and self.horizon > self.inner.num_steps:
            raise ValueError(f"horizon must be at most the {self.inner.num_steps} inner steps, got {self.horizon}")

    @property
    def is_exact(self) -> bool:
        """True if every step is differentiated, at states that are not rounded."""
        return self.storage is None and self.horizon in (None, self.inner.num_steps)

    @checked_step(TrajectoryState)
    @eqx.filter_jit
    def step(self, problem: BilevelProblem, hparams: PyTree, state: TrajectoryState, key: Array) -> Stepped:
        """Trains, then sweeps back."""
        training, total = Training(self.inner, problem, hparams, key), self.inner.num_steps
        horizon = total if self.horizon is None else self.horizon
        start = training.begin(state.inner, self.warm_start)
        middle = training.advance(start, 0, total - horizon) if horizon < total else start
        steps = jnp.arange(total - horizon, total, dtype=jnp.int32)
        end, replay = self._forward(training, middle, steps)
        value, adjoint = start_adjoint(training, end)
        adjoint, recomputed = replay(adjoint)
        if horizon == total:
            through = through_start(training, start, self.warm_start, adjoint.cotangent)
        else:
            through = through_state(training, middle, adjoint.cotangent)
        hypergradient = cast_like(optax.tree.add(adjoint.hypergradient, in_single(through)), hparams)
        counts = Counts(
            iterations=total,
            inner_gradients=self.inner.num_gradients(start, end, total) + recomputed,
            step_vjps=horizon,
            outer_gradients=1,
        )
        estimate = Estimate(hypergradient, value, end.judged, stats_of(adjoint, counts))
        return checked(self, training, state, end, estimate)

    def _forward(
        self, training: Training, start: InnerState, steps: Array
    ) -> tuple[InnerState, Callable[[Adjoint], tuple[Adjoint, int]]]:
        """Returns the end of training, and a function from the adjoint there to that at `start`.

        The function also returns the number of steps that it computed again.
        """
        if self.checkpoints is None:
            end, states = record(training, start, steps, self.storage)
            return end, lambda adjoint: (sweep(training, states, steps, adjoint, start), 0)

        count = math.isqrt(len(steps)) if self.checkpoints == "sqrt" else min(int(self.checkpoints), len(steps))
        length = len(steps) // count
        head, segments = steps[: len(steps) % count], steps[len(steps) % count :].reshape(count, length)
        middle, head_states = start, start  # an empty head is not swept: a scan of no steps fails without jit
        if len(head):
            middle, head_states = record(training, start, head, self.storage)

        def run(state: InnerState, segment: Array) -> tuple[InnerState, InnerState]:
            return training.advance(state, segment[0], segment[0] + length), state

        end, anchors = jax.lax.scan(run, middle, segments)

        def replay(adjoint: Adjoint) -> tuple[Adjoint, int]:
            def back(adjoint: Adjoint, at: PyTree) -> tuple[Adjoint, None]:
                segment, anchor = at
                _, states = record(training, anchor, segment, self.storage)
                return sweep(training, states, segment, adjoint, start), None

            adjoint, _ = jax.lax.scan(back, adjoint, (segments, anchors), reverse=True)
            if len(head):
                adjoint = sweep(training, head_states, head, adjoint, start)
            return adjoint, count * length

        return end, replay


class OneStep(AbstractTrajectoryEstimator):
    """The derivative of the last training step alone: `Reverse` with `horizon=1`.

        dF/dλ ≈ ∂_λ F + B_Tᵀ ∇_w F

    **Arguments**: `inner`, the inner solver; `warm_start`: train on from where the last step ended; `check`: how the
    error is measured, see `ErrorCheck`.

    *Cost*: training and one step-VJP. *Memory*: that of training. *Bias*: of order ρ where every step contracts the
    error by ρ, so none for inner solvers that converge superlinearly (Newton, L-BFGS at the end) and large for slow
    ones.
    *When not to use it*: for learning rates and other hyperparameters whose effect is slow.

    **Source**: Bolte, Pauwels, Vaiter (2023), one-step differentiation.
    """

    @property
    def is_exact(self) -> bool:
        """True if there is one step alone."""
        return self.inner.num_steps == 1

    @checked_step(TrajectoryState)
    @eqx.filter_jit
    def step(self, problem: BilevelProblem, hparams: PyTree, state: TrajectoryState, key: Array) -> Stepped:
        """Trains, then pulls the outer gradient back through the last step."""
        last = Reverse(self.inner, horizon=1, warm_start=self.warm_start, check=self.check)
        return last.step(problem, hparams, state, key)
