"""The callables of `ensembles.evidence` with an argument table each."""

import jax.numpy as jnp
import numpy as np

from ensembles import evidence

from .kinds import Function, Int, Key, Kind, LogVariance, Only, Some, number, numeric
from .statistics import Numbers

X = np.array([[1.0, 0.5], [0.2, -1.0], [0.3, 0.4]])


def outputs(w):
    return jnp.asarray(X) @ w


def noise(value):
    """The verdict on a log-variance: one number, or one per output."""
    known = numeric(value) is not None and np.all(np.isfinite(numeric(value)))
    return None if known or isinstance(number(value), int) else False


LIKELIHOOD = Only(lambda: evidence.Gaussian(jnp.ones(3), 0.0))
JOINT = {
    "outputs": Function(outputs),
    "model": Some(lambda: jnp.ones(2)),
    "log_variance": LogVariance(),
    "likelihood": LIKELIHOOD,
}
CALLS = {
    "evidence.Gaussian": (
        evidence.Gaussian,
        {
            "targets": Kind(lambda: jnp.ones(3), lambda value: None if noise(value) is None else False),
            "log_variance": Kind(lambda: 0.0, noise),
        },
    ),
    "evidence.Categorical": (
        evidence.Categorical,
        {
            "labels": Kind(
                lambda: jnp.array([0, 1, 1]),
                lambda value: None if np.ndim(value) == 1 and numeric(value) is not None else False,
            )
        },
    ),
    "evidence.Lanczos": (
        evidence.Lanczos,
        {"num_probes": Int(2, least=1), "num_steps": Int(2, least=1), "key": Key(optional=True)},
    ),
    "evidence.negative_log_joint": (evidence.negative_log_joint, JOINT),
    "evidence.Laplace.negative_log_evidence": (evidence.Laplace().negative_log_evidence, JOINT),
    "evidence.Laplace.predict": (evidence.Laplace().predict, JOINT | {"new_outputs": Function(outputs)}),
    "evidence.probit_probabilities": (
        evidence.probit_probabilities,
        {"mean": Numbers(lambda: jnp.ones(2)), "covariance": Numbers(lambda: jnp.eye(2))},
    ),
    "evidence.Laplace": (
        evidence.Laplace,
        {"structure": Only(evidence.Full), "where": Function(lambda model: model)},
    ),
}
