"""A step size for hypergradient descent that needs no tuning."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from ..ground.checks import checked, real
from ..ground.tree import all_finite, epsilon
from ..ground.units import norm


class AdaptiveStepState(NamedTuple):
    """The last accepted point and the current estimate of the gradient's Lipschitz constant."""

    lipschitz: Array  # 0 before the first step
    params: PyTree
    gradient: PyTree
    value: Array
    outer_gap: Array
    slope: Array  # rise over distance at the last failure since then, infinity before one


@checked(real("shrink", above=0, below=1), real("grow", above=1))
def adaptive_step(shrink: float = 0.95, grow: float = 2.0) -> optax.GradientTransformationExtraArgs:
    """Returns gradient descent with step 1/L, L raised after a failure and lowered after a success.

    With λ_0 the last accepted point, g_0, F_0 its hypergradient and value, d = ‖λ - λ_0‖, the slack
    s = gap + gap_0 + rtol ‖g_0‖ d + rounding for the inexactness of the values, and the rise r = F - F_0 - s:

    - r > 0, or F or g not finite: backtrack. L <- grow · L; the update leads to λ_0 - g_0 / L.
    - else λ is accepted, and if even r <= -L d²/2 then L <- shrink · L. The update leads to λ - g / L.

    Where F is convex r/d falls with d. If after a failure it has grown by more than √grow, F_0 was too low, because
    training was coarser then: the update leads to λ_0 itself, and what is measured there replaces F_0 and g_0.

    The first L is ‖g‖/√n, so that the first step has root mean square 1: it depends on the unit of λ and not on that of
    F. A gap that is not finite excuses nothing. Rounding is 4 machine epsilons of |F| + |F_0|.

    `update` takes the extra arguments `value`, and `outer_gap` and `rtol` as reported by `HOAG` (0 if absent).

    *When not to use it*: where `value` is random, because noise is taken for failure.

    **Source**: after Pedregosa (2016), section 3.2. The published code applies accepted steps twice and on a failure
    stays at the failed point; here it returns. It measures no λ_0 again.

    **Example**

        >>> step = hg.adaptive_step()
        >>> updates, _ = step.update(jnp.array([4.0]), step.init(jnp.array([1.0])), jnp.array([1.0]), value=2.0)
        >>> updates
        Array([-1.], dtype=float32)
    """

    def init(params: PyTree) -> AdaptiveStepState:
        dtype = norm(params).dtype
        zero = jnp.zeros((), dtype)
        infinity = jnp.full((), jnp.inf, dtype)
        return AdaptiveStepState(zero, params, optax.tree.zeros_like(params), infinity, zero, infinity)

    def update(
        updates: PyTree,
        state: AdaptiveStepState,
        params: PyTree | None = None,
        *,
        value: Array,
        outer_gap: Array | float = 0.0,
        rtol: Array | float = 0.0,
        **_: Any,
    ) -> tuple[PyTree, AdaptiveStepState]:
        if params is None:
            raise ValueError("adaptive_step needs params: call update(gradient, state, params, value=value)")
        dtype = state.lipschitz.dtype
        first, finite = state.lipschitz == 0, jnp.isfinite(value) & all_finite(updates)
        rms = norm(updates) / jnp.sqrt(jnp.asarray(optax.tree.size(updates), dtype))
        lipschitz = jnp.where(first & finite, rms, state.lipschitz)
        distance = norm(optax.tree.sub(params, state.params))
        returned = distance <= 8 * epsilon(params) * norm(params)
        gap = jnp.where(jnp.isfinite(outer_gap), outer_gap, 0)
        rounding = 4 * epsilon(value) * (jnp.abs(value) + jnp.abs(state.value))
        slack = gap + state.outer_gap + rtol * norm(state.gradient) * distance + rounding
        rise = jnp.where(finite, value - state.value - slack, jnp.inf).astype(dtype)
        accepted = finite & (first | returned | (rise <= 0))
        good = accepted & ~first & ~returned & (rise <= -lipschitz * distance**2 / 2)
        slope = rise / jnp.where(returned, 1, distance)
        doubtful = ~accepted & finite & (slope > grow**0.5 * state.slope)
        lipschitz = lipschitz * jnp.where(accepted, jnp.where(good, shrink, 1), grow)
        infinity = jnp.full_like(rise, jnp.inf)
        value, gap = (jnp.asarray(number, dtype) for number in (value, gap))
        here = AdaptiveStepState(lipschitz, params, updates, value, gap, infinity)
        there = state._replace(lipschitz=lipschitz, slope=jnp.where(doubtful, infinity, slope))
        base = optax.tree.where(accepted, here, there)
        step = jnp.where((lipschitz > 0) & ~doubtful, 1 / jnp.where(lipschitz > 0, lipschitz, 1), 0)
        target = optax.tree.add_scale(base.params, -step, base.gradient)
        return optax.tree.sub(target, params), base

    return optax.GradientTransformationExtraArgs(init, update)
