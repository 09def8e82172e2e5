"""The hypergradient as a function of the hyperparameters."""

import warnings
from collections.abc import Callable

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, PyTree

from .estimators.base import ESTIMATOR, AbstractEstimator
from .ground.checks import checked, random_key
from .ground.hparams import as_hparams
from .problem import PROBLEM, BilevelProblem, check_model
from .stats import Status


@checked(PROBLEM, ESTIMATOR)
def value_and_hypergrad(
    problem: BilevelProblem, estimator: AbstractEstimator
) -> Callable[[PyTree, PyTree, Array], tuple[Array, PyTree]]:
    """Returns a function `(hparams, params, key) -> (value, hypergradient)`, one estimate from a cold start.

    `value` is the outer loss after training the model `params`; the hypergradient has the structure of `hparams`.
    *Cost*: one step of the estimator; compiled once per structure and shape.

    The flags of the estimate are a `RuntimeWarning`, except inside a transformation, where they have no values yet:
    `estimator.step` returns them as `stats.status`.

    **Raises** what the estimator's `init` raises.

    **Example**

        >>> value, slope = hg.value_and_hypergrad(problem, hg.Reverse(inner))(log_l2, w, key)
        >>> print(f"{value:.3f} {slope:.3f}")
        0.352 0.321
    """

    @checked(random_key())
    def function(hparams: PyTree, params: PyTree, key: Array) -> tuple[Array, PyTree]:
        hparams = as_hparams(hparams)
        check_model(problem, params, hparams)  # here, where arrays have values
        value, hypergradient, status = _cold_estimate(problem, estimator, hparams, params, key)
        warn_of_flags(status)
        return value, hypergradient

    return function


@eqx.filter_jit
def _cold_estimate(
    problem: BilevelProblem, estimator: AbstractEstimator, hparams: PyTree, params: PyTree, key: Array
) -> tuple[Array, PyTree, Array]:
    estimate, _ = estimator.step(problem, hparams, estimator.init(problem, params, hparams), key)
    return estimate.value, estimate.hypergradient, estimate.stats.status


def warn_of_flags(status: Array) -> None:
    """Warns of the flags of an estimate, which its value and hypergradient do not show, where they are known."""
    if isinstance(status, jax.core.Tracer):
        return
    if flags := int(np.bitwise_or.reduce(np.ravel(status))):
        warnings.warn(
            f"the hypergradient is flagged {Status(flags)}, see hypergrad.Status; the estimator's step returns it with "
            "its diagnostics, and hypergrad.diagnose compares estimators",
            RuntimeWarning,
            stacklevel=5,
        )
