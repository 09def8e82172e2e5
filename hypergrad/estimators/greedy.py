"""Hypergradients of single steps: each training step answers only for itself."""

import dataclasses

import equinox as eqx
import jax
import optax
from jaxtyping import Array, PyTree

from ..ground.checks import boolean, field, real
from ..ground.derivatives import once
from ..inner import InnerState
from ..problem import BilevelProblem
from ..stats import Counts, Estimate, Stats
from ..training import Training, cotangent_of
from .base import AbstractTrajectoryEstimator, checked_step
from .common.accuracy import Stepped, TrajectoryState, with_accuracy
from .common.adjoint import lost_in_float16, through_start, through_state
from .common.trail import rows_in_trail, trail_by_rows


class Greedy(AbstractTrajectoryEstimator):
    """The hypergradient of one training step ahead, taken on the way forward.

        dF/dλ ≈ ∂_λ F + Σ_{t=1..T} decay^{T-t} B_tᵀ ∇_w F(w_t)

    with B_t = ∂Φ/∂λ at step t. `decay=0` keeps the last step alone: with one inner step and the default `warm_start`
    that is the online rule that moves λ at every training step; with T inner steps λ moves every T-th.

    **Arguments**

    - `inner`: the inner solver; its `num_steps` is the update period.
    - `decay`: weight of the steps before the last, between 0 and 1.
    - `warm_start`: train on from where the last step ended; `True` here, as the method is meant online.
    - `check`: how the error is measured, see `ErrorCheck`; `None` for not.

    *Cost*: one step-VJP and one outer gradient per hyper-step besides training (per training step if `decay` > 0, and
    one more outer gradient at the end). In an array that steps read by rows alone, as
    `hparams["weight"][data["row"]]`, a training step touches the rows read.
    *Memory*: that of training. *Bias*: the short horizon: right if T = 1 or the Hessian is the identity over the
    learning rate; the direction is usable for regularisation, the scale is not, and learning rates come out far too
    small.
    *When not to use it*: for learning rates and other hyperparameters whose effect is slow.

    **Source**: Luketina et al. (2016), T1-T2; Bakhteev and Strijov (2020), greedy; Generalized Greedy (2025) for
    `decay`.

    **Example**

        >>> search = hg.GradientSearch(hg.Greedy(inner.with_num_steps(1)), optax.adam(0.1))
        >>> state = search.init(problem, w, log_l2)
        >>> state, history = hg.run(search, problem, state, key=key, budget=100)
        >>> print(f"{history.value[0]:.3f} -> {state.best.value:.3f}")
        1.905 -> 0.121
    """

    _: dataclasses.KW_ONLY
    decay: float = field(real("decay", least=0, most=1), 0.0)
    warm_start: bool = field(boolean("warm_start"), True)

    @property
    def is_exact(self) -> bool:
        """True if there is one step alone."""
        return self.inner.num_steps == 1

    @checked_step(TrajectoryState)
    @eqx.filter_jit
    def step(self, problem: BilevelProblem, hparams: PyTree, state: TrajectoryState, key: Array) -> Stepped:
        """Trains, adding up one-step hypergradients."""
        training, total = Training(self.inner, problem, hparams, key), self.inner.num_steps
        start = training.begin(state.inner, self.warm_start)
        outer_value_and_grads = once(training.outer_value_and_grads)

        def look_ahead(state: InnerState, t: Array | int) -> tuple[InnerState, Array, tuple[PyTree, PyTree], PyTree]:
            """Returns the state after one step, the value there, its gradients, and that in w pulled back to λ."""
            new, pullback = training.step_vjp(state, t)
            value, by_model, direct = outer_value_and_grads(new)
            by_state, through_step = pullback(cotangent_of(new, by_model))
            if total == 1:
                more = through_start(training, state, self.warm_start, by_state)
            else:
                more = through_state(training, state, by_state)
            return new, value, (by_model, direct), optax.tree.add(through_step, more)

        def body(t: Array, carry: PyTree) -> PyTree:
            state, trail = carry
            new, _, _, through_step = look_ahead(state, t)
            return new, optax.tree.add_scale(through_step, self.decay, trail)

        last_only = isinstance(self.decay, int | float) and self.decay == 0
        if last_only or total == 1:
            pullbacks = outer_gradients = 1
            before = training.advance(start, 0, total - 1)
            end, value, (by_model, direct), through_steps = look_ahead(before, total - 1)
        else:
            pullbacks, outer_gradients = total, total + 1
            if by_rows := rows_in_trail(training, start, self.decay, total):
                end, through_steps = trail_by_rows(training, start, float(self.decay), total, by_rows)
            else:
                nothing = optax.tree.zeros_like(hparams)
                end, through_steps = jax.lax.fori_loop(0, total, body, (start, nothing))
            # The loss once more, in place of another program for the last step: that is compiled as long as the loop.
            value, by_model, direct = outer_value_and_grads(end)
        counts = Counts(
            iterations=total,
            inner_gradients=self.inner.num_gradients(start, end, total),
            step_vjps=pullbacks,
            outer_gradients=outer_gradients,
        )
        stats = Stats(counts, lost_in_float16(by_model))
        estimate = Estimate(optax.tree.add(direct, through_steps), value, end.judged, stats)
        return with_accuracy(self, training, state, end, estimate)


class OneStep(AbstractTrajectoryEstimator):
    """The derivative of the last training step alone: `Greedy` without decay, `Reverse` with `horizon=1`.

        dF/dλ ≈ ∂_λ F + B_Tᵀ ∇_w F

    **Arguments**: `inner`, the inner solver; `warm_start`: train on from where the last step ended; `check`: how the
    error is measured, see `ErrorCheck`.

    *Cost*: training and one step-VJP. *Memory*: that of training. *Bias*: of order ρ where every step contracts the
    error by ρ, so none for inner solvers that converge superlinearly (Newton, L-BFGS at the end) and large for slow
    ones.
    *When not to use it*: for learning rates and other hyperparameters whose effect is slow.

    **Source**: Bolte, Pauwels, Vaiter (2023), one-step differentiation.

    **Example**

        >>> value, slope = hg.value_and_hypergrad(problem, hg.OneStep(inner, check=None))(log_l2, w, key)
        >>> print(f"{value:.3f} {slope:.3f}")
        0.352 0.083
    """

    @property
    def is_exact(self) -> bool:
        """True if there is one step alone."""
        return self.inner.num_steps == 1

    @checked_step(TrajectoryState)
    @eqx.filter_jit
    def step(self, problem: BilevelProblem, hparams: PyTree, state: TrajectoryState, key: Array) -> Stepped:
        """Trains, then pulls the outer gradient back through the last step alone."""
        last = Greedy(self.inner, warm_start=self.warm_start, check=self.check)
        return last.step(problem, hparams, state, key)
