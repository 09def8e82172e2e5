"""F2SA: bilevel search with first derivatives alone."""

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from ...ground.checks import checked, field, number_or_function, optimiser, real
from ...problem import PROBLEM, BilevelProblem, outer_value, outer_value_and_grads
from ...stats import Counts
from ..base import PROJECTION, Record, SearchState, checked_step
from ..gradient import identity
from .common import AbstractSingleLoop, Found, Rules, Variables, advance, inner_gradients, start, with_batch

MULTIPLIER = number_or_function(real("multiplier", above=0), "k -> number")


class F2SA(AbstractSingleLoop):
    """Two copies of the model, one of them pulled towards a small outer loss; their difference is the hypergradient.

        w <- w - ρ ∇_w L(w),    y <- y - ρ (∇_w L(y) + ∇_w F(y)/σ),    λ <- λ - γ (∂_λ F(y) + σ (∂_λ L(y) - ∂_λ L(w)))

    all at the old (w, y, λ), with the multiplier σ = σ_k. Both copies start at `params`. They see the same draw of the
    inner loss at every step, or its noise would enter the hypergradient σ times.

    **Arguments**

    - `inner_optimiser`: an optax optimiser, for w and y alike. `outer_optimiser`: one for λ.
    - `multiplier`: σ, a positive number or a schedule k -> σ_k (k = 0, 1, ...), growing for convergence.
    - `projection`: applied to λ after every step.

    Where a result is not finite w and y stay and λ turns back, as in `GradientSearch`. `value` is the outer loss at w,
    which is trained on the inner loss alone. A random one is treated as in `SOBA`.

    *Cost*: two inner gradients and one outer gradient a step, and one evaluation of the outer loss, not counted; two
    iterations, one a copy. No second derivatives. *Memory*: two models. *Bias*: of order 1/σ, and that of being behind
    as in `SOBA`: with `optax.sgd`, σ(w - y) moves as v there, so that γ need not fall as σ grows; an optimiser that
    rescales each copy by itself breaks this. *When not to use it*: where Hessian-vector products are affordable,
    because `SOBA` has no bias of 1/σ; where σ is so large that the two copies agree to rounding. Learning rates leave
    no trace.

    **Source**: Kwon, Kwon, Wright, Nowak (2023); there y descends on F + σL, with steps smaller by σ.

    **Example**

        >>> search = hg.F2SA(optax.sgd(0.1), optax.sgd(0.3), 10.0)
        >>> state = search.init(problem, w, log_l2)
        >>> state, history = hg.run(search, problem, state, key=key, budget=300)
        >>> print(f"{history.value[0]:.3f} -> {state.best.value:.3f}")
        2.865 -> 0.124
    """

    inner_optimiser: optax.GradientTransformation = field(optimiser("inner_optimiser"))
    outer_optimiser: optax.GradientTransformation = field(optimiser("outer_optimiser"))
    multiplier: float | Callable[[Array], Array] = field(MULTIPLIER)
    _: dataclasses.KW_ONLY
    projection: Callable[[PyTree], PyTree] = field(PROJECTION, identity)

    @property
    def _rules(self) -> Rules:
        return Rules(Variables(self.inner_optimiser, self.inner_optimiser, self.outer_optimiser), self.projection)

    @checked(PROBLEM)
    def init(self, problem: BilevelProblem, params: PyTree, hparams: PyTree) -> SearchState:
        """Returns the state before the first step."""
        return start(problem, params, hparams, self._rules.optimisers, lambda weights: weights)

    @checked_step
    @eqx.filter_jit
    def step(self, problem: BilevelProblem, state: SearchState, key: Array) -> tuple[SearchState, Record]:
        """Moves everything once."""
        inner_key, outer_key = jax.random.split(key)
        batch, state = with_batch(problem, state, inner_key)
        loop, hparams = state.inner_state, state.hparams
        pulled = loop.partitioned.with_arrays(loop.auxiliary)
        (gradient, slope), layer_state = inner_gradients(batch, hparams, loop.partitioned, inner_key)
        (pulled_gradient, pulled_slope), _ = inner_gradients(batch, hparams, pulled, inner_key)
        _, by_model, direct = outer_value_and_grads(problem, hparams, pulled, outer_key)
        value = outer_value(problem, loop.params, hparams, outer_key)
        sigma = self.multiplier(state.num_steps) if callable(self.multiplier) else self.multiplier
        sigma = jnp.asarray(sigma, value.dtype)
        directions = Variables(
            gradient,
            optax.tree.add_scale(pulled_gradient, 1 / sigma, by_model.arrays),
            optax.tree.add_scale(direct, sigma, optax.tree.sub(pulled_slope, slope)),
        )
        counts = Counts(iterations=2, inner_gradients=2, outer_gradients=1)
        return advance(problem, state, key, self._rules, Found(directions, value, counts, layer_state))
