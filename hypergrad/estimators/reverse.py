"""Exact reverse mode through the whole of training."""

import dataclasses

import equinox as eqx
import jax
from jaxtyping import Array, DTypeLike, PyTree

from ensembles.ground.memory import available_bytes

from ..ground.checks import Rule, boolean, checked, field, floating_type, integer, real
from ..ground.hparams import as_hparams
from ..inner import InnerState
from ..problem import PROBLEM, BilevelProblem
from ..stats import Counts, Estimate
from ..training import Training
from .base import AbstractTrajectoryEstimator, checked_step
from .common.accuracy import Stepped, TrajectoryState, with_accuracy
from .common.adjoint import start_adjoint, stats_of, through_start, through_state
from .common.choice import Keeping, quickest
from .common.keeping import Forwards, keep_residuals, keep_segments, keep_states
from .common.treeverse import keep_slots, slots_needed

COUNT = integer("checkpoints", least=1)
WORDS = ("sqrt", "binomial", "auto")
CHECKPOINTS = Rule(
    "checkpoints",
    '"sqrt", "binomial", "auto" or a positive integer',
    lambda value: value if isinstance(value, str) and value in WORDS else COUNT.convert(value),
    optional=True,
)
FREE_SHARE = 0.5  # of the free memory: a step needs some besides what is kept
REPEATS = 3  # of every step, at most, with checkpoints="binomial"


class Reverse(AbstractTrajectoryEstimator):
    """Reverse mode through the last `horizon` of T training steps; the yardstick of all others.

        dF/dλ = ∂_λ F + Σ_t B_tᵀ c_{t+1},    c_T = ∇_w F,    c_t = A_tᵀ c_{t+1}

    with A_t = ∂Φ/∂(w, s) and B_t = ∂Φ/∂λ at step t. Every step is rematerialised: the states are stored, not what is
    inside a step, so memory does not grow with T times the data.

    **Arguments**

    - `inner`: the inner solver.
    - `remat`: `False` stores what the derivative of each step reads, in place of the states, and computes nothing
      again. Quicker where that is small: for full batches and few outputs a row, not for wide networks.
    - `checkpoints`: `None` stores every state; `"sqrt"` about 2 √T of them, and computes every step once more; a number
      s so many, and computes every step at most r times, with the smallest r for which C(s + r, s) ≥ T; `"binomial"`
      the fewest for r = 3, about (6 T)^(1/3); `"auto"` takes the quickest of all of these, `remat=False` included, that
      fits into memory, by the sizes of states and residuals and the operations of a step. See `plan`.
    - `memory_limit`: the bytes that `"auto"` may use; `None` is half of what the device has free. What was free may
      change from run to run, and rounding with what is kept: give it where a run must resume bit by bit.
    - `storage`: the floating type in which states are kept, e.g. `jnp.float16` for half the memory of float32, with
      rounding errors in the path and none in the recursion; `None` keeps the type.
    - `horizon`: the number of last steps differentiated; `None` is all. `horizon=K` frozen at a fixed point is the
      K-term Neumann series.
    - `warm_start`: train on from where the last step ended (what came before counts as constant).
    - `check`: how the error of `horizon` and `storage` is measured, see `ErrorCheck`; `None` for not.

    *Cost*: about 2 to 3 training runs, 3 to 4 with `"sqrt"`, 1 + r to 2 + r with a number. *Memory*: T states, or what
    `checkpoints` says; without `remat` T times what the derivative of a step reads; and one number per step and device.
    *Bias*: none; with `horizon` K, of order ρ^K on strongly convex problems with contraction ρ.
    *When not to use it*: when T states do not fit; see `DrMAD` and `checkpoints`.
    `stats.diagnostics["growth"]`: the largest ‖c_t‖/‖c_T‖. Far above 1 the hypergradient itself is ill-conditioned.
    With `"auto"` `"kept_states"` and `"repeats"` say what was taken, see `Keeping`.

    **Raises** `ValueError` for options that exclude each other.

    **Source**: Domke (2012); Maclaurin, Duvenaud, Adams (2015); Shaban et al. (2019) for the horizon; Griewank (1992),
    Griewank and Walther (2000) for binomial checkpoints.

    **Example**

        >>> value, slope = hg.value_and_hypergrad(problem, hg.Reverse(inner))(log_l2, w, key)
        >>> print(f"{value:.3f} {slope:.3f}")
        0.352 0.321
    """

    _: dataclasses.KW_ONLY
    remat: bool = field(boolean("remat"), True)
    checkpoints: int | str | None = field(CHECKPOINTS, None)
    horizon: int | None = field(integer("horizon", least=1, optional=True), None)
    storage: DTypeLike | None = field(floating_type("storage"), None)
    memory_limit: float | None = field(real("memory_limit", above=0, optional=True), None)

    def __check_init__(self) -> None:
        if self.horizon is not None and self.horizon > self.inner.num_steps:
            raise ValueError(f"horizon must be at most the {self.inner.num_steps} inner steps, got {self.horizon}")
        if self.memory_limit is not None and self.checkpoints != "auto":
            raise ValueError('memory_limit has no meaning without checkpoints="auto"')
        if not self.remat and (self.checkpoints, self.storage) != (None, None):
            raise ValueError("remat=False stores no states: leave checkpoints and storage out")
        if self.storage is not None and self.checkpoints not in (None, "sqrt"):
            raise ValueError(
                f"storage rounds states from which no training goes on, and checkpoints={self.checkpoints!r} stores "
                'others: use checkpoints="sqrt" or none'
            )

    @property
    def is_exact(self) -> bool:
        """True if every step is differentiated, at states that are not rounded."""
        return self.storage is None and self.horizon in (None, self.inner.num_steps)

    @checked_step(TrajectoryState)
    @eqx.filter_jit
    def step(self, problem: BilevelProblem, hparams: PyTree, state: TrajectoryState, key: Array) -> Stepped:
        """Trains, then sweeps back."""
        training, total = Training(self.inner, problem, hparams, key), self.inner.num_steps
        horizon = self._horizon
        start = training.begin(state.inner, self.warm_start)
        middle = training.advance(start, 0, total - horizon) if horizon < total else start
        reach = (training, middle, total - horizon, total)
        chosen = quickest(*reach, self._limit) if self.checkpoints == "auto" else None
        end, replay = self._forwards(*reach) if chosen is None else chosen.run(*reach)
        value, adjoint = start_adjoint(training, end)
        adjoint, recomputed = replay(adjoint)
        if horizon == total:
            through = through_start(training, start, self.warm_start, adjoint.cotangent)
        else:
            through = through_state(training, middle, adjoint.cotangent)
        counts = Counts(
            iterations=total,
            inner_gradients=self.inner.num_gradients(start, end, total) + recomputed,
            step_vjps=horizon,
            outer_gradients=1,
        )
        taken = {} if chosen is None else chosen.diagnostics
        estimate = Estimate(adjoint.total(hparams, through), value, end.judged, stats_of(adjoint, counts, **taken))
        return with_accuracy(self, training, state, end, estimate)

    @checked(PROBLEM)
    def plan(self, problem: BilevelProblem, params: PyTree, hparams: PyTree) -> Keeping:
        """Returns what `checkpoints="auto"` keeps, whatever `checkpoints` says; nothing is trained."""
        hparams = as_hparams(hparams)
        training = Training(self.inner, problem, hparams, jax.random.key(0))
        start = training.begin(self.init(problem, params, hparams).inner, self.warm_start)
        return quickest(training, start, self.inner.num_steps - self._horizon, self.inner.num_steps, self._limit)

    @property
    def _horizon(self) -> int:
        return self.inner.num_steps if self.horizon is None else self.horizon

    @property
    def _limit(self) -> float:
        return FREE_SHARE * available_bytes() if self.memory_limit is None else self.memory_limit

    def _forwards(self, training: Training, start: InnerState, first: int, stop: int) -> Forwards:
        """Trains through steps `first ... stop - 1`, keeping what the options say."""
        if not self.remat:
            return keep_residuals(training, start, first, stop)
        if self.checkpoints is None:
            return keep_states(training, start, first, stop, self.storage)
        if self.checkpoints == "sqrt":
            return keep_segments(training, start, first, stop, self.storage)
        binomial = self.checkpoints == "binomial"
        slots = slots_needed(stop - first, REPEATS) if binomial else int(self.checkpoints)
        return keep_slots(training, start, first, stop, slots)
