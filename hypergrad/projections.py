"""Projections of hyperparameters, for the field `projection` of searches."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .ground.checks import checked, real


class ShrinkToMean(eqx.Module):
    """The map of each array of hyperparameters towards its own mean; see `shrink_to_mean`."""

    share: float

    def __call__(self, hparams: PyTree) -> PyTree:
        """Returns the arrays nearer to their means."""
        return jax.tree.map(lambda leaf: leaf + self.share * (jnp.mean(leaf) - leaf), hparams)


@checked(real("share", least=0, most=1))
def shrink_to_mean(share: float) -> ShrinkToMean:
    """Returns a projection that takes every hyperparameter a share of the way to the mean of its array.

        λ_i <- λ_i + share (λ̄ - λ_i),    λ̄ the mean of the array, or of the layer

    Applied after every move, it is a Gaussian prior on the deviations from the mean: those that the hypergradient
    does not keep up decay with time constant 1/`share` moves, and the mean is left alone. It guards one penalty per
    weight, or one weight per example, against overfitting the validation data. A share of 0 changes nothing, and with
    1 all numbers of an array stay equal. Scalars are their own mean.

        hg.GradientSearch(estimator, optax.adam(0.2), projection=hg.projections.shrink_to_mean(0.05))

    *Cost*: one pass over the hyperparameters.

    **Raises** `TypeError` or `ValueError` unless `share` is a number from 0 to 1.

    **Example**

        >>> hg.projections.shrink_to_mean(0.5)(jnp.array([0.0, 4.0]))
        Array([1., 3.], dtype=float32)
    """
    return ShrinkToMean(share)
