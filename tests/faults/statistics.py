"""The statistics and criteria of `ensembles` with an argument table each, and their kinds of arguments."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import ensembles as ens

from .kinds import Bool, Function, Int, Key, Kind, Only, Real, Some, numeric

R, N = 4, 3


@functools.cache
def rows():
    random = np.random.default_rng(0)
    return jnp.asarray(random.normal(size=(R, N))), jnp.asarray(random.normal(size=N))


@functools.cache
def lower():
    return ens.cholesky(jnp.eye(N) + 0.1)


@functools.cache
def folds():
    masks = np.array([[True, False, False], [False, True, True]])
    return ens.make_folds(masks, np.arange(1.0, 4.0), np.eye(N))


def Numbers(right, *shapes, optional=False, finite=True):  # noqa: N802
    """An array of numbers of one of some shapes."""

    def judge(value):
        if value is None:
            return optional
        array = numeric(value)
        if array is None or array.shape not in (shapes or (np.shape(right()),)):
            return False
        return None if np.all(np.isfinite(array)) else False if finite else None

    return Kind(right, judge)


def Mask(right, optional=True):  # noqa: N802
    def judge(value):
        if value is None:
            return optional
        if isinstance(value, np.ndarray | jax.Array) and value.dtype == bool and value.shape == np.shape(right()):
            return None
        array = numeric(value)
        return None if array is not None and array.shape == np.shape(right()) else False

    return Kind(right, judge)


def Factor(optional=False):  # noqa: N802
    return Kind(lower, lambda value: value is None and optional)


PREDICTIONS = Numbers(lambda: rows()[0], finite=False)
DATA = Numbers(lambda: rows()[1])
MASK, KEEP = Mask(lambda: np.ones(N, bool)), Mask(lambda: np.ones(R, bool))
BEST = Real(0.9, above=0, most=1)
ALL = {"predictions": PREDICTIONS, "data": DATA, "factor": Factor(), "mask": MASK, "keep": KEEP}
CRITERION = {
    "predictions": Numbers(lambda: jnp.stack([rows()[0]] * 2), finite=False),
    "folds": Only(folds),
    "keep": Mask(lambda: np.ones((2, R), bool)),
}


def only(*names):
    return {name: ALL[name] for name in names}


def log_likelihood(model):
    return -(model**2)


STATISTICS = {
    "chi2": (
        ens.chi2,
        only("data", "factor", "mask")
        | {"predictions": Numbers(lambda: rows()[0], (R, N), (2, N), (N,), finite=False)},
    ),
    "mean_chi2": (ens.mean_chi2, ALL | {"best_fraction": BEST}),
    "mean_of_best": (
        ens.mean_of_best,
        {"values": Numbers(lambda: jnp.ones(R), finite=False), "best_fraction": BEST, "keep": KEEP},
    ),
    "phi2": (ens.phi2, only("predictions", "factor", "mask", "keep")),
    "ensemble_chi2": (ens.ensemble_chi2, ALL),
    "negative_log_probability": (
        ens.negative_log_probability,
        ALL | {"scale": Numbers(lambda: jnp.ones(N), optional=True)},
    ),
    "bias_variance": (ens.bias_variance, ALL | {"factor": Factor(optional=True)}),
    "coverage": (
        ens.coverage,
        only("predictions", "data", "mask", "keep")
        | {
            "levels": Kind(lambda: 0.5, lambda v: None if numeric(v) is not None else False),
            "errors": Kind(lambda: jnp.ones(N), lambda v: v is None or (None if numeric(v) is not None else False)),
        },
    ),
    "calibration_error": (
        ens.calibration_error,
        only("predictions", "data", "mask", "keep") | {"num_levels": Int(5, least=1)},
    ),
    "bootstrap_error": (
        ens.bootstrap_error,
        {
            "key": Key(),
            "statistic": Function(jnp.mean),
            "predictions": Some(lambda: rows()[0]),
            "num": Int(5, least=2),
            "chunk": Int(5, least=1),
        },
    ),
    "covariance": (
        ens.covariance,
        {
            "uncorrelated": Numbers(lambda: jnp.ones(N)),
            "additive": Numbers(lambda: jnp.ones((N, 2))),
            "relative": Numbers(lambda: jnp.ones((N, 2))),
            "central": Numbers(lambda: jnp.ones(N)),
        },
    ),
    "cholesky": (ens.cholesky, {"covariance": Kind(lambda: jnp.eye(N), lambda v: False)}),
    "mask_covariance": (
        ens.mask_covariance,
        {"covariance": Kind(lambda: jnp.eye(N), lambda v: False), "mask": Mask(lambda: np.ones(N, bool), False)},
    ),
    "whiten": (
        ens.whiten,
        {"factor": Factor(), "residuals": Numbers(lambda: jnp.ones((2, N)), (2, N), (N,), finite=False)},
    ),
    "make_folds": (
        ens.make_folds,
        {
            "masks": Mask(lambda: np.array([[True, False, False], [False, True, True]]), False),
            "data": DATA,
            "covariance": Kind(lambda: np.eye(N), lambda value: False),
        },
    ),
    **{
        name: (getattr(ens, name), CRITERION | {"best_fraction": BEST})
        for name in ("fold_chi2", "mean_loss", "worst_loss")
    },
    **{
        name: (getattr(ens, name), CRITERION)
        for name in ("fold_phi2", "fold_ensemble_chi2", "spread_loss", "full_covariance_loss", "log_probability_loss")
    },
    "outer_loss": (
        ens.outer_loss,
        {
            "criterion": Function(ens.mean_loss),
            "predict": Function(len),
            "num": Int(2, least=1, optional=True),
            "drop_failed": Bool(),
        },
    ),
}
