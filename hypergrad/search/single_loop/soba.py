"""SOBA: the inner problem, the linear system and the hyperparameters, one stochastic step each at a time."""

import equinox as eqx
import jax
import optax
from jaxtyping import Array, PyTree

from ...ground.checks import checked
from ...problem import PROBLEM, BilevelProblem, outer_value_and_grads
from ...stats import Counts
from ..base import Record, SearchState, checked_step
from .common import AbstractLinearLoop, Found, Variables, advance, inner_products, start, with_batch


class SOBA(AbstractLinearLoop):
    """A single loop over weights, linear system and hyperparameters, each moved by one stochastic step.

        w <- w - ρ ∇_w L,    v <- v - ρ' (H v - ∇_w F),    λ <- λ - γ (∂_λ F - (∂²L/∂w∂λ)ᵀ v)

    all right-hand sides at the old (w, v, λ). v starts at 0 and follows H⁻¹ ∇_w F. The losses draw their minibatches
    from their keys: H v and (∂²L/∂w∂λ)ᵀ v get independent ones, ∇_w L that of H v. Of `Batches` all three read the
    same one.

    **Arguments**

    - `inner_optimiser`, `linear_optimiser`, `outer_optimiser`: optax optimisers of w, v and λ, e.g. `optax.sgd` with a
      constant or a schedule. That of v must be stable for H: plain descent with ρ' < 2/λ_max(H).
    - `projection`: applied to λ after every step.

    Where a result is not finite w and v stay and λ turns back, as in `GradientSearch`. `value` is the outer loss as
    drawn, at weights on their way. Where the outer loss uses its key, `best` is chosen and reported by repeated
    evaluations; see `Best`. They take at most a quarter of all work.

    *Cost*: a step is one inner gradient, one Hessian-vector and one mixed product, and one outer gradient. *Memory*:
    that of training and one vector. *Bias*: from w and v being behind their targets; it vanishes as steps fall like
    k^-1/2. With constant steps and noise it stops at a noise floor: use `SABA` there. *When not to use it*: where L is
    not strongly convex, because v may diverge; on small smooth problems, where `MAID` needs no step sizes. Learning
    rates leave no trace.

    **Source**: Dagréou, Ablin, Vaiter, Moreau (2022); there v has the opposite sign and one step size with w.

    **Example**

        >>> search = hg.SOBA(optax.sgd(0.1), optax.sgd(0.1), optax.sgd(0.3))
        >>> state = search.init(problem, w, log_l2)
        >>> state, history = hg.run(search, problem, state, key=key, budget=300)
        >>> print(f"{history.value[0]:.3f} -> {state.best.value:.3f}")
        2.865 -> 0.122
    """

    @checked(PROBLEM)
    def init(self, problem: BilevelProblem, params: PyTree, hparams: PyTree) -> SearchState:
        """Returns the state before the first step."""
        return start(problem, params, hparams, self._rules.optimisers, optax.tree.zeros_like)

    @checked_step
    @eqx.filter_jit
    def step(self, problem: BilevelProblem, state: SearchState, key: Array) -> tuple[SearchState, Record]:
        """Moves everything once."""
        inner_key, mixed_key, outer_key = jax.random.split(key, 3)
        batch, state = with_batch(problem, state, inner_key)
        loop, hparams = state.inner_state, state.hparams
        keys = inner_key, mixed_key
        products, layer_state = inner_products(batch, hparams, loop.partitioned, loop.auxiliary, *keys)
        gradient, hvp, mixed = products
        value, by_model, direct = outer_value_and_grads(problem, hparams, loop.partitioned, outer_key)
        directions = Variables(gradient, optax.tree.sub(hvp, by_model.arrays), optax.tree.sub(direct, mixed))
        counts = Counts(iterations=1, inner_gradients=1, hvps=2, outer_gradients=1)
        return advance(problem, state, key, self._rules, Found(directions, value, counts, layer_state))
