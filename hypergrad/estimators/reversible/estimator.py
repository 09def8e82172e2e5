"""Exact reverse mode that stores no path: training is run backwards."""

import dataclasses
import math

import equinox as eqx
from jaxtyping import Array, PyTree

from ...ground.checks import boolean, choice, field, real, shown
from ...ground.tree import epsilon
from ...inner import InnerState
from ...problem import BilevelProblem
from ...stats import Counts, Estimate, Status, flag
from ...training import Training
from ..base import AbstractTrajectoryEstimator, checked_step
from ..common.accuracy import Stepped, TrajectoryState, with_accuracy
from ..common.adjoint import start_adjoint, stats_of
from ..common.refusals import refuse_complex
from . import integers as fixed_point
from .momentum import MomentumSGD
from .motion import ExactMotion, FloatMotion
from .stretches import grouped, there_and_back


class Reversible(AbstractTrajectoryEstimator):
    """Reverse mode along the path that SGD with momentum takes when it is run backwards from its end.

        w_t = w_{t+1} + α v_{t+1},    v_t = (v_{t+1} - ∇L(w_t)) / μ

    and on it the recursion of `Reverse`. In floating point the error of v grows by 1/μ per step backwards, so the path
    is cut into stretches, with the state stored where they meet. With `exact=True` weights and velocities are integers
    times 2⁻⁵², or times a larger power of two where they are large, and the log₂(1/μ) bits that each step loses are
    stored: the start is recovered to the last bit.

    **Arguments**

    - `inner`: `OptaxSolver(MomentumSGD(learning_rate, momentum), num_steps)` with a momentum above 0.
    - `exact`: arithmetic without loss; needs JAX's 64-bit mode.
    - `rtol`: wanted relative error of the recovered states; sets the stretches to log(rtol/ε)/log(1/μ) steps, ε the
      machine epsilon.
    - `checkpoints`: `None` keeps something of every stretch; `"sqrt"` of about 2 √n of the n stretches, and computes
      nearly every step once more.
    - `min_momentum`: the lowest momentum to expect, needed where it is a function of the hyperparameters.
    - `warm_start`: train on from where the last step ended.
    - `check`: how the error of the hypergradient is measured where it is not exact, see `ErrorCheck`; `None` for not.

    `diagnostics["reversal_error"]` is measured where states are known: the largest ‖recovered - stored‖/‖stored‖ at the
    beginning of a stretch. Above 10 times `rtol` the status is IRREVERSIBLE. With `exact` it is 0, or 1 and
    IRREVERSIBLE where numbers outgrew their range, the momentum was below `min_momentum`, or a gradient computed again
    had other bits, as GPUs may give.

    *Cost*: as `Reverse`; with `exact` two to three times that, with `checkpoints` one training run more. *Memory*: one
    state per stretch, or 2 √n of n; with `exact` one 64-bit word per weight and 61 steps (for μ >= 1/2), 1/61 of the
    weights' path in float64. Without running again it has to grow with T: training contracts volumes by μ per
    weight and step, so that T log₂(1/μ) bits are needed to recover its start. *Bias*: none beyond the reversal error.
    *When not to use it*: with a momentum below about 0.5, where states come back no cheaper than by `Reverse` with
    checkpoints.

    **Source**: Maclaurin, Duvenaud, Adams (2015), section 3, algorithms 2 and 3; the stretches are ours.

    **Example**

        >>> momentum = hg.OptaxSolver(hg.MomentumSGD(0.1, 0.5), 20)
        >>> value, slope = hg.value_and_hypergrad(problem, hg.Reversible(momentum))(log_l2, w, key)
        >>> print(f"{value:.3f} {slope:.3f}")
        0.347 0.327
    """

    _: dataclasses.KW_ONLY
    exact: bool = field(boolean("exact"), False)
    rtol: float = field(real("rtol", above=0, below=1), 1e-2)
    checkpoints: str | None = field(choice("checkpoints", "sqrt", optional=True), None)
    min_momentum: float | None = field(real("min_momentum", above=0, below=1, optional=True), None)

    def __check_init__(self) -> None:
        optimiser = self.inner.options.get("opt")
        if not isinstance(optimiser, MomentumSGD):
            raise TypeError(
                "inner must be OptaxSolver(MomentumSGD(learning_rate, momentum), num_steps): other optimisers cannot "
                f"be run backwards, got {shown(optimiser)}"
            )
        if self.inner.average is not None:
            raise ValueError(
                f"inner averages its weights (average={self.inner.average:g}), which training run backwards does not "
                "recover: use Reverse"
            )
        if self.min_momentum is None and callable(optimiser.momentum):
            raise ValueError("min_momentum must be given where momentum is a function of the hyperparameters")
        if not 0 < self._momentum < 1:
            raise ValueError(f"momentum must be above 0 to be run backwards, got {self._momentum}")
        self._refuse_short_integers()

    def _refuse_short_integers(self) -> None:
        if self.exact and not fixed_point.enabled():
            raise ValueError("exact=True needs 64-bit numbers: jax.config.update('jax_enable_x64', True)")

    @property
    def _momentum(self) -> float:
        return self.min_momentum if self.min_momentum is not None else self.inner.options["opt"].momentum

    @property
    def is_exact(self) -> bool:
        """True if states are recovered to the last bit."""
        return self.exact

    @checked_step(TrajectoryState)
    @eqx.filter_jit
    def step(self, problem: BilevelProblem, hparams: PyTree, state: TrajectoryState, key: Array) -> Stepped:
        """Trains, then runs backwards."""
        self._refuse_short_integers()
        if state.inner.partitioned.layer_state is not None:
            raise TypeError("inner_loss returns the state of layers, which cannot be run backwards: use Reverse")
        if self.exact:
            refuse_complex(state.inner.partitioned.arrays, "exact=True counts in integers")
        training, total = Training(self.inner, problem, hparams, key), self.inner.num_steps
        start = training.begin(state.inner, self.warm_start)
        motion = ExactMotion.fitting(training, start, self._momentum) if self.exact else FloatMotion(training, start)
        length = min(self._spacing(start), total)
        again = grouped(total, length) if self.checkpoints == "sqrt" else 0
        position, replay = there_and_back(motion, total, length, again)
        end = motion.end(position, total)
        value, adjoint = start_adjoint(training, end)
        adjoint, error = replay(position, adjoint)
        counts = Counts(
            iterations=total,
            inner_gradients=(2 if self.exact else 1) * total + again,
            step_vjps=total,
            outer_gradients=1,
        )
        status = flag(~(error <= (0 if self.exact else 10 * self.rtol)), Status.IRREVERSIBLE)
        stats = stats_of(adjoint, counts, status, reversal_error=error)
        estimate = Estimate(adjoint.total(hparams), value, end.judged, stats)
        return with_accuracy(self, training, state, end, estimate)

    def _spacing(self, start: InnerState) -> int:
        if self.exact:
            return fixed_point.products_per_word(self._momentum)
        exactness = self.rtol / epsilon(start.partitioned.arrays)
        return max(int(math.log(max(exactness, 2)) / -math.log(self._momentum)), 1)
