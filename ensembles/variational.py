"""Mean-field Gaussian posteriors over the weights of any model, and the evidence lower bound as a loss."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from .checks import (
    KEY,
    array,
    call,
    checked,
    function,
    has_shape,
    instance,
    integer,
    real,
    refuse_complex,
    refuse_unknown,
    shown,
)
from .ground.leaves import named_leaves
from .ground.noise import normal


@runtime_checkable
class PartlyActive(Protocol):
    """A model, or a part of one, of which some weights count for nothing, such as `hypergrad.trials.MaskedMLP`."""

    @property
    def active_weights(self) -> PyTree:
        """A tree like the floating arrays of the model, `True` where a weight counts."""


class MeanField(eqx.Module):
    """Independent Gaussians q(w_i) = N(mean_i, exp(2 log_std_i)) over every floating array of a model.

    The posterior is a model itself: `mean` is the model, activation functions included, `log_std` a tree of arrays like
    its parameters, and both are trained. Weights that a model declares inactive, see `PartlyActive`, have no
    distribution: they are not drawn and add nothing to `gaussian_kl`.

    **Arguments**: `model`, any pytree or `eqx.Module`; `log_std`, the initial log standard deviation of every weight.

    **Raises** `TypeError` or `ValueError` naming `model` where its weights are complex, or it has none.

    **Example**

        >>> posterior = ens.MeanField(jnp.zeros(3), log_std=-1.0)
        >>> posterior.sample(key).shape
        (3,)
    """

    mean: PyTree
    log_std: PyTree

    @checked(real("log_std"))
    def __init__(self, model: PyTree, log_std: float = -3.0):
        refuse_unknown(model, "model")
        weights = eqx.filter(model, eqx.is_inexact_array)
        refuse_complex(weights, "model")
        if not jax.tree.leaves(weights):
            raise ValueError("model has no floating-point array to put a distribution over")
        self.mean = model
        self.log_std = jax.tree.map(lambda weight: jnp.full_like(weight, log_std), weights)

    @property
    def weights(self) -> PyTree:
        """The means as a tree of arrays, `None` where the model holds something else."""
        return eqx.filter(self.mean, eqx.is_inexact_array)

    @property
    def active(self) -> PyTree:
        """A tree like the weights: `True`, or an array of truth values, where they have a distribution."""
        declares = lambda part: isinstance(part, PartlyActive)
        flags = lambda part: jax.tree.map(lambda _: True, eqx.filter(part, eqx.is_inexact_array))
        choose = lambda part: part.active_weights if declares(part) else flags(part)
        return jax.tree.map(choose, self.mean, is_leaf=declares)

    @checked(KEY)
    def sample(self, key: Array) -> PyTree:
        """Draws a model with weights mean + exp(log_std) · ε, ε ~ N(0, 1), differentiable in both."""
        weights, rest = eqx.partition(self.mean, eqx.is_inexact_array)
        flat, unravel = ravel_pytree(weights)  # one call of the generator compiles and runs faster than one per array
        noise = unravel(normal(key, flat.size, flat.dtype))
        draw = lambda mean, log_std, eps, active: mean + _where(active, jnp.exp(log_std) * eps)
        drawn = jax.tree.map(draw, weights, self.log_std, noise, self.active)
        return eqx.combine(drawn, rest)


LOG_LIKELIHOOD = function("log_likelihood", "from a model to an array")
POSTERIOR = instance("posterior", MeanField, "a MeanField")
SAMPLES = integer("num_samples", least=1, most=10**6)


@checked(POSTERIOR)
def gaussian_kl(posterior: MeanField, log_variance: PyTree) -> Array:
    """Returns KL(q || p) to the prior p(w_i) = N(0, exp(h_i)), in nats, in closed form:

        ½ Σ_i [ (m_i² + s_i²) exp(-h_i) - 1 + h_i - 2 log s_i ]

    `log_variance` is h, a tree like the weights or any prefix of it: one number for all, one per layer, one per array.
    Shapes broadcast. The negatives of log-precisions are log-variances.

    **Source**: Graves (2011), section 4; Bakhteev and Strijov (2020).

    **Example**

        >>> print(f"{ens.gaussian_kl(ens.MeanField(jnp.ones(3), log_std=0.0), jnp.zeros(3)):.2f}")
        1.50
    """

    def term(mean: Array, log_std: Array, h: Array, active: Array | bool) -> Array:
        sizes = mean**2 + jnp.exp(2 * log_std)
        return jnp.sum(_where(active, sizes * jnp.exp(-h) - 1 + h - 2 * log_std)) / 2

    prior = prior_log_variance(log_variance, posterior.weights)
    terms = jax.tree.map(term, posterior.weights, posterior.log_std, prior, posterior.active)
    return jax.tree.reduce(jnp.add, terms)


@checked(POSTERIOR, LOG_LIKELIHOOD, KEY, integer("num_examples", least=1), SAMPLES)
def negative_elbo(
    posterior: MeanField,
    log_variance: PyTree,
    log_likelihood: Callable[[PyTree], Array],
    key: Array,
    num_examples: int,
    num_samples: int = 1,
) -> Array:
    """Returns the negative evidence lower bound per example, a loss in the posterior and in h of the prior:

        -1/S Σ_s mean_rows log p(y | x, w_s) + KL(q || p)/n,    w_s ~ q by reparametrisation

    **Arguments**

    - `log_variance`: h of the prior, see `gaussian_kl`.
    - `log_likelihood`: a function from a model to the log-likelihoods of some rows, of shape (rows,), each summed over
      what a row holds. A minibatch gives an unbiased estimate.
    - `num_examples`: n, the size of the whole training set; `num_samples`: S.

    At the optimum over q the derivative in h is the partial derivative (envelope theorem).

    **Raises** `ValueError` where the log-likelihoods have another shape than (rows,).

    **Example**

        >>> posterior = ens.MeanField(jnp.zeros(3), log_std=-3.0)
        >>> fit = lambda w: -((x @ w - y) ** 2)
        >>> print(f"{ens.negative_elbo(posterior, jnp.zeros(3), fit, key, num_examples=20):.1f}")
        4.5
    """

    def mean(model: PyTree) -> Array:
        found = log_likelihood(model)
        has_shape(found, (None,), "the log-likelihoods")
        return jnp.mean(found)

    draw = lambda key: call("log_likelihood", mean, "a model of posterior", posterior.sample(key))
    expected = draw(key) if num_samples == 1 else jnp.mean(jax.vmap(draw)(jax.random.split(key, num_samples)))
    return -expected + gaussian_kl(posterior, log_variance) / num_examples


@checked(POSTERIOR)
def evidence_log_variance(posterior: MeanField) -> PyTree:
    """Returns the prior log-variances that maximise the ELBO at fixed posterior, h_i = log(m_i² + s_i²).

    They are the M-step of expectation maximisation.

    **Source**: MacKay (1992); Tipping (2001), the M-step of automatic relevance determination.

    **Example**

        >>> ens.evidence_log_variance(ens.MeanField(jnp.ones(3), log_std=0.0)).round(3)
        Array([0.693, 0.693, 0.693], dtype=float32)
    """
    square = lambda mean: 2 * jnp.log(jnp.where(mean == 0, 1, jnp.abs(mean))) + jnp.where(mean == 0, -jnp.inf, 0)
    return jax.tree.map(
        lambda mean, log_std: jnp.logaddexp(square(mean), 2 * log_std), posterior.weights, posterior.log_std
    )


@checked(POSTERIOR, function("log_probs", "from a model to an array"), KEY, SAMPLES)
def predictive_log_probs(
    posterior: MeanField, log_probs: Callable[[PyTree], Array], key: Array, num_samples: int
) -> Array:
    """Returns log 1/S Σ_s p(y | x, w_s), w_s ~ q, the mean of the predictive probabilities of S samples.

    `log_probs` is a function from a model to log-probabilities of any shape.
    """
    evaluate = lambda model: jnp.asarray(log_probs(model))
    draw = lambda key: call("log_probs", evaluate, "a model of posterior", posterior.sample(key))
    drawn = jax.vmap(draw)(jax.random.split(key, num_samples))
    return jax.nn.logsumexp(drawn, axis=0) - jnp.log(num_samples)


def prior_log_variance(log_variance: PyTree, weights: PyTree) -> PyTree:
    """Returns the log-variance of every weight. **Raises** `TypeError` or `ValueError` naming what does not fit."""
    if log_variance is None:
        raise TypeError(
            "log_variance must be a number, or a tree of arrays like the weights or a prefix of it, got None"
        )
    for path, leaf in named_leaves(log_variance, "log_variance"):
        array(path, finite=False)(leaf)
    try:
        prior = jax.tree.broadcast(log_variance, weights)
        fits = jax.tree.map(
            lambda h, weight: jnp.broadcast_shapes(jnp.shape(h), weight.shape) == weight.shape, prior, weights
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"log_variance must be a tree like the weights or a prefix of it: {error}") from None
    if not all(jax.tree.leaves(fits)):
        raise ValueError(f"log_variance does not broadcast to the weights, got {shown(log_variance)}")
    return prior


def _where(active: Array | bool, terms: Array) -> Array:
    return terms if active is True else jnp.where(active, terms, 0)
