"""Changes of a case that laws compare with it: other hyperparameters, single precision."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

import hypergrad as hg

from .problems import Case


class InOtherHyperparameters(eqx.Module):
    """A loss of λ as a loss of μ, λ = change(μ); two of one loss are equal, so that nothing is compiled again."""

    loss: Callable[..., Array]
    change: Callable[[PyTree], PyTree]

    def __call__(self, model: PyTree, mu: PyTree, data: PyTree, key: Array) -> Array:
        """Returns the loss at λ = change(μ)."""
        return self.loss(model, self.change(mu), data, key)


def in_other_hyperparameters(case: Case, change: Callable[[PyTree], PyTree], mu: PyTree) -> Case:
    """Returns the case with λ = change(μ), at `mu`."""
    old = case.problem
    inner, outer = (InOtherHyperparameters(loss, change) for loss in (old.inner_loss, old.outer_loss))
    return Case(hg.BilevelProblem(inner, outer, old.train, old.valid), case.params, mu)


def bend(mu: PyTree) -> PyTree:
    """Returns a smooth increasing function of every hyperparameter."""
    return jax.tree.map(lambda m: 0.3 * m + jnp.sinh(m) / 2, mu)


class Rearrange(eqx.Module):
    """The same numbers in another pytree: `like` has the structure and shapes of the result."""

    like: PyTree  # of jax.ShapeDtypeStruct

    def __call__(self, tree: PyTree) -> PyTree:
        """Returns the numbers of `tree`, in order."""
        leaves = jax.tree.leaves(self.like)
        ends = np.cumsum([leaf.size for leaf in leaves])
        parts = jnp.split(jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)]), ends[:-1])
        parts = [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
        return jax.tree.unflatten(jax.tree.structure(self.like), parts)


def single(tree: PyTree) -> PyTree:
    """Returns the tree with its floating numbers in float32."""
    change = lambda leaf: jnp.asarray(leaf, jnp.float32) if eqx.is_inexact_array_like(leaf) else leaf
    return jax.tree.map(change, tree)


def in_single_precision(case: Case) -> Case:
    """Returns the case in float32."""
    problem = case.problem
    problem = hg.BilevelProblem(problem.inner_loss, problem.outer_loss, single(problem.train), single(problem.valid))
    return Case(problem, single(case.params), single(case.hparams))
