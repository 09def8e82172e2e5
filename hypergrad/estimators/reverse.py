"""Exact reverse mode through the whole of training."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, PyTree

from ..inner import InnerState, JaxoptSolver, as_inner_solver
from ..problem import BilevelProblem
from ..stats import Counts, Estimate, Stats
from .base import AbstractEstimator
from .common.adjoint import Adjoint, back_to_start, start_adjoint
from .common.trajectory import advance, begin, check_storage, record, sweep


class Reverse(AbstractEstimator):
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

    *Cost*: about 2 to 3 training runs, 3 to 4 with checkpoints. *Memory*: T states, or about 2 √T.
    *Bias*: none; with `horizon` K, of order ρ^K on strongly convex problems with contraction ρ.
    *When not to use it*: when T states do not fit; see `DrMAD` and `checkpoints`.
    `stats.diagnostics["growth"]`: the largest ‖c_t‖/‖c_T‖. Far above 1 the hypergradient itself is ill-conditioned.

    **Source**: Domke (2012); Maclaurin, Duvenaud, Adams (2015); Shaban et al. (2019) for the horizon.
    """

    inner: JaxoptSolver = eqx.field(converter=as_inner_solver)
    checkpoints: int | str | None = None
    horizon: int | None = None
    warm_start: bool = False
    storage: DTypeLike | None = None

    def __check_init__(self):
        steps = self.inner.num_steps
        if self.horizon is not None and not (isinstance(self.horizon, int) and 1 <= self.horizon <= steps):
            raise ValueError(f"horizon must be between 1 and the number of inner steps {steps}, got {self.horizon!r}")
        if self.checkpoints not in (None, "sqrt") and not (isinstance(self.checkpoints, int) and self.checkpoints >= 1):
            raise ValueError(f'checkpoints must be None, "sqrt" or a positive integer, got {self.checkpoints!r}')
        check_storage(self.storage)

    def init(self, problem: BilevelProblem, params: PyTree, hparams: PyTree) -> InnerState:
        """The inner state to start from."""
        return self.inner.init(problem, params, hparams)

    @eqx.filter_jit
    def step(
        self, problem: BilevelProblem, hparams: PyTree, state: InnerState, key: Array
    ) -> tuple[Estimate, InnerState]:
        """Train, then sweep back."""
        inner, total = self.inner, self.inner.num_steps
        horizon = total if self.horizon is None else self.horizon
        start = begin(inner, problem, hparams, state, self.warm_start)
        middle = advance(inner, problem, hparams, start, key, 0, total - horizon) if horizon < total else start
        steps = jnp.arange(total - horizon, total, dtype=jnp.int32)
        end, replay = self._forward(problem, hparams, middle, key, steps)
        value, adjoint = start_adjoint(problem, hparams, end, jax.random.fold_in(key, total))
        adjoint, recomputed = replay(adjoint)
        hypergradient = adjoint.hypergradient
        if horizon == total and not self.warm_start:
            hypergradient = back_to_start(inner, problem, state.params, hparams, adjoint)
        counts = Counts(
            iterations=total,
            inner_gradients=inner.gradients(start, end) + recomputed,
            step_vjps=horizon,
            outer_gradients=1,
        )
        stats = Stats(counts, diagnostics={"growth": adjoint.growth})
        return Estimate(hypergradient, value, end.params, stats), end if self.warm_start else state

    def _forward(self, problem, hparams, start, key, steps):
        """The end of training and a function from the adjoint there to the adjoint at the start."""
        args = (self.inner, problem, hparams)
        if self.checkpoints is None:
            end, states = record(*args, start, key, steps, self.storage)
            return end, lambda adjoint: (sweep(*args, states, key, steps, adjoint, start), 0)

        count = math.isqrt(len(steps)) if self.checkpoints == "sqrt" else min(int(self.checkpoints), len(steps))
        length = len(steps) // count
        head, segments = steps[: len(steps) % count], steps[len(steps) % count :].reshape(count, length)
        middle, head_states = start, start  # an empty head is not swept: a scan of no steps fails without jit
        if len(head):
            middle, head_states = record(*args, start, key, head, self.storage)

        def run(state, segment):
            return advance(*args, state, key, segment[0], segment[0] + length), state

        end, anchors = jax.lax.scan(run, middle, segments)

        def replay(adjoint: Adjoint) -> tuple[Adjoint, int]:
            def back(adjoint, at):
                segment, anchor = at
                _, states = record(*args, anchor, key, segment, self.storage)
                return sweep(*args, states, key, segment, adjoint, start), None

            adjoint, _ = jax.lax.scan(back, adjoint, (segments, anchors), reverse=True)
            if len(head):
                adjoint = sweep(*args, head_states, key, head, adjoint, start)
            return adjoint, count * length

        return end, replay


def OneStep(inner: JaxoptSolver, warm_start: bool = False) -> Reverse:  # noqa: N802 - reads as a class, returns a Reverse
    """The derivative of the last training step alone: `Reverse` with `horizon=1`.

        dF/dλ ≈ ∂_λ F + B_Tᵀ ∇_w F

    *Cost*: training and one step-VJP. *Bias*: of order ρ where every step contracts the error by ρ, so none for inner
    solvers that converge superlinearly (Newton, L-BFGS at the end) and large for slow ones.

    **Source**: Bolte, Pauwels, Vaiter (2023), one-step differentiation.
    """
    return Reverse(inner, horizon=1, warm_start=warm_start)
