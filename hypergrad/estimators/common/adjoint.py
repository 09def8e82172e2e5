"""The adjoint recursion of trajectory estimators, from the outer gradient back to the hypergradient.

The estimators differ only in the states at which a step is pulled back and in the recursion of the cotangent.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, PyTree

from ...ground.tree import cast_like, differentiable, in_single, vdot
from ...ground.units import exponent, shifted
from ...inner import InnerState
from ...stats import Counts, Stats, Status, flag
from ...training import Training
from .trajectory import restored

UNSTABLE = 1e3  # growth of the adjoint from which training diverges, or its derivative is ill-conditioned


class Adjoint(eqx.Module):
    """The adjoint at one step: c_t = ∂F/∂(w_t, s_t), the hypergradient so far, and the sizes of all c_t.

    They are in units of 2^power, in which the largest number of c_T and ∂_λ F is between ½ and 1.
    """

    cotangent: PyTree
    hypergradient: PyTree  # at least in float32
    sizes: Array  # (T + 1, devices), the squares of c_t in row t; 0 before they are known
    power: Array

    @property
    def growth(self) -> Array:
        """max_t ‖c_t‖ / ‖c_T‖: far above 1 where training is unstable or the path is wrong."""
        sizes = jnp.sqrt(jnp.sum(self.sizes, axis=1))
        return _ratio(jnp.max(sizes), sizes[-1])

    def growth_at(self, t: Array) -> Array:
        """Returns ‖c_t‖ / ‖c_T‖."""
        return _ratio(*jnp.sqrt(jnp.sum(self.sizes[jnp.stack([t, jnp.int32(len(self.sizes) - 1)])], axis=1)))

    def moved(self, t: Array, cotangent: PyTree, by_hparams: PyTree) -> "Adjoint":
        """Returns the adjoint before step t: `cotangent`, and `by_hparams` more of the hypergradient."""
        hypergradient = optax.tree.add(self.hypergradient, in_single(by_hparams))
        return Adjoint(cotangent, hypergradient, self.sizes.at[t].set(squares(cotangent)), self.power)

    def total(self, hparams: PyTree, through: PyTree | None = None) -> PyTree:
        """Returns the whole hypergradient, like `hparams`; `through` comes from `through_start` or `through_state`."""
        total = self.hypergradient if through is None else optax.tree.add(self.hypergradient, in_single(through))
        return cast_like(shifted(total, self.power), hparams)


def _ratio(size: Array, first: Array) -> Array:
    return jnp.where(first > 0, size / jnp.where(first > 0, first, 1), 1)


def squares(cotangent: InnerState) -> Array:
    """Returns the parts of ‖c‖² on the model and the averaged weights, one per device; moments have other units.

    Each is over consecutive rows of the arrays, as many for each device as a device holds where they are spread by
    rows. So no part needs another device, and all steps together need one sum over devices.
    """
    devices, judged = jax.device_count(), (cotangent.partitioned, cotangent.average)
    if devices == 1:
        return jnp.real(vdot(judged, judged))[None]

    def parts(leaf: Array) -> Array:
        if leaf.ndim == 0 or leaf.shape[0] % devices:
            whole = jnp.real(vdot(leaf, leaf))
            return jnp.zeros(devices, whole.dtype).at[0].set(whole)
        leaf = in_single(leaf)
        rows = jnp.real(leaf * jnp.conj(leaf)).reshape(devices, -1, leaf.shape[-1] if leaf.ndim > 1 else 1)
        return jnp.sum(jax.lax.optimization_barrier(jnp.sum(rows, axis=1)), axis=1)  # vectorised, see `vdot`

    return jax.tree.reduce(jnp.add, jax.tree.map(parts, judged))


def start_adjoint(training: Training, end: InnerState) -> tuple[Array, Adjoint]:
    """Returns the outer loss at the end of training, and the adjoint there, c_T = ∂F/∂(w_T, s_T)."""
    value, cotangent, by_hparams = training.outer_cotangent(end)
    by_hparams, wide = in_single((by_hparams, cotangent))
    power = exponent((by_hparams, wide))
    cotangent = cast_like(shifted(wide, -power), cotangent)
    last = squares(cotangent)
    sizes = jnp.zeros((training.inner.num_steps + 1, *last.shape), last.dtype).at[-1].set(last)
    return value, Adjoint(cotangent, shifted(by_hparams, -power), sizes, power)


def step_back(training: Training, state: InnerState, t: Array, adjoint: Adjoint) -> Adjoint:
    """Returns the adjoint before step t, taken at `state`:  g += B_tᵀ c,  c <- A_tᵀ c."""
    _, pullback = training.step_vjp(state, t)
    return adjoint.moved(t, *pullback(adjoint.cotangent))


def sweep(training: Training, states: InnerState, steps: Array, adjoint: Adjoint, like: InnerState) -> Adjoint:
    """Returns the adjoint before the first of the given steps, from that after the last.

    `states` are the recorded states before each step, stacked; they are computed with in the types of `like`.
    """

    def body(adjoint: Adjoint, at: tuple[Array, InnerState]) -> tuple[Adjoint, None]:
        t, state = at
        return step_back(training, restored(state, like), t, adjoint), None

    return jax.lax.scan(body, adjoint, (steps, states), reverse=True)[0]


def stats_of(adjoint: Adjoint, counts: Counts, status: ArrayLike = Status.OK, **diagnostics: Array) -> Stats:
    """Returns counts, growth and status: ADJOINT_GROWTH where the adjoint grew so far that rounding rules."""
    overflows = jnp.any(jnp.isinf(adjoint.sizes))  # then the growth is NaN
    grown = flag((adjoint.growth > UNSTABLE) | overflows, Status.ADJOINT_GROWTH)
    lost = lost_in_float16(adjoint.cotangent, shifted(jnp.sum(adjoint.sizes[-1]), 2 * adjoint.power))
    return Stats(counts, status | grown | lost, diagnostics={"growth": adjoint.growth} | diagnostics)


def lost_in_float16(gradient: PyTree, square: Array | None = None) -> Array:
    """Returns INACCURATE where an outer gradient has lost its digits in float16.

    Its root mean square is below the normal numbers then, of which the smaller have ever fewer digits, or all is zero.
    With ‖g‖² = `square` given, `gradient` is anything of its form.
    """
    leaves = jax.tree.leaves(gradient)
    if not any(leaf.dtype == jnp.float16 for leaf in leaves):
        return jnp.int32(Status.OK)
    square = vdot(gradient, gradient) if square is None else square
    size = jnp.sqrt(square / sum(leaf.size for leaf in leaves))
    return flag(size < float(jnp.finfo(jnp.float16).tiny), Status.INACCURATE)


def through_start(training: Training, start: InnerState, warm_start: bool, cotangent: PyTree) -> PyTree:
    """Returns the part of a hypergradient that comes through the state before the first step.

    That state depends on λ where the solver evaluates the loss before its first update, as LBFGS does, and where the
    optimiser keeps hyperparameters in its state.
    """
    begin = lambda hparams: training.at(hparams).begin(start, warm_start)
    return _pulled_back(begin, training.hparams, cotangent)


def through_state(training: Training, state: InnerState, cotangent: PyTree) -> PyTree:
    """Returns the part of a hypergradient that comes through what `state`, in the midst of training, takes from λ.

    Where the recursion is cut the state counts as constant, but for what it holds in place of λ itself: see `renew` of
    inner solvers.
    """
    renew = lambda hparams: training.inner.renew(training.problem, hparams, state)
    return _pulled_back(renew, training.hparams, cotangent)


def _pulled_back(function: Callable[[PyTree], InnerState], hparams: PyTree, cotangent: PyTree) -> PyTree:
    _, pullback = jax.vjp(lambda hparams: differentiable(function(hparams)), hparams)
    return pullback(cotangent)[0]
