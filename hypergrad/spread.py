"""The noise of a hypergradient, measured over keys."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ensembles.ground.memory import refuse_too_large

from .estimators.base import ESTIMATOR, AbstractEstimator
from .ground.checks import checked, explained, integer, random_key
from .ground.hparams import as_hparams
from .ground.show import paragraph, show
from .problem import PROBLEM, BilevelProblem, check_model


class Spread(eqx.Module):
    """Means and standard deviations over `num_keys` keys.

    - `value`, `value_std`: of the outer loss after training.
    - `hypergradient`, `hypergradient_std`: of every entry, like `hparams`.
    """

    value: Array
    value_std: Array
    hypergradient: PyTree
    hypergradient_std: PyTree
    num_keys: int = eqx.field(static=True)

    @property
    def signal_to_noise(self) -> PyTree:
        """|mean| / standard deviation of every entry: below 1 a single key does not tell the sign."""
        ratio = lambda mean, std: jnp.where(std > 0, jnp.abs(mean) / jnp.where(std > 0, std, 1), jnp.inf)
        return jax.tree.map(ratio, self.hypergradient, self.hypergradient_std)

    def __repr__(self) -> str:
        """Shows value and hypergradient with their spread."""
        return paragraph(
            f"Spread over {self.num_keys} keys: value {show(self.value)} ± {show(self.value_std)}",
            (
                f"hypergradient: {show(self.hypergradient)}",
                f"standard deviation: {show(self.hypergradient_std)}",
                f"signal to noise: {show(self.signal_to_noise)}",
            ),
        )


def _explain(problem: BilevelProblem, estimator: Any, params: PyTree, hparams: PyTree, **_: Any) -> None:
    check_model(problem, params, as_hparams(hparams))


@checked(PROBLEM, ESTIMATOR, random_key(), integer("num_keys", least=2))
@explained(_explain)
def spread(
    problem: BilevelProblem,
    estimator: AbstractEstimator,
    params: PyTree,
    hparams: PyTree,
    *,
    key: Array,
    num_keys: int = 8,
) -> Spread:
    """Returns the spread of value and hypergradient over keys: minibatches, dropout, random directions.

    Each key trains `params` anew. The standard error of a mean over the keys is the deviation over √`num_keys`.

    *Cost, memory*: `num_keys` estimates, side by side.

    **Raises** what the estimator's `init` raises, and `ValueError` for fewer than two keys.

    **Example**

        >>> found = hg.spread(problem, hg.ES(inner, 4), w, log_l2, key=key, num_keys=4)
        >>> print(f"{found.hypergradient:.3f} ± {found.hypergradient_std:.3f}")
        0.321 ± 0.344
    """
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(eqx.filter((params, hparams), eqx.is_inexact_array)))
    refuse_too_large(4 * size * num_keys, "num_keys", f"training with {num_keys} keys side by side")
    values, hypergradients = _estimates(
        problem, estimator, params, as_hparams(hparams), jax.random.split(key, num_keys)
    )
    mean = lambda leaf: jnp.mean(leaf, axis=0)
    std = lambda leaf: jnp.std(leaf, axis=0, ddof=1)
    found = jax.tree.map(mean, hypergradients), jax.tree.map(std, hypergradients)
    return Spread(mean(values), std(values), *found, num_keys)


@eqx.filter_jit
def _estimates(
    problem: BilevelProblem, estimator: AbstractEstimator, params: PyTree, hparams: PyTree, keys: Array
) -> tuple[Array, PyTree]:
    def one(key: Array) -> tuple[Array, PyTree]:
        estimate, _ = estimator.step(problem, hparams, estimator.init(problem, params, hparams), key)
        return estimate.value, estimate.hypergradient

    return jax.vmap(one)(keys)
