"""The public callables of `ensembles` with an argument table each."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ensembles as ens

from .evidence import CALLS as EVIDENCE
from .kinds import Function, Int, Key, Kind, LogVariance, Only, Real, Some, numeric
from .statistics import DATA, STATISTICS, Factor, Mask, N, Numbers, R, log_likelihood, rows

OPTIMISER = Only(lambda: optax.sgd(0.1))
REPLICAS = Kind(lambda: {"w": rows()[0]}, lambda value: None)
POSTERIOR = Only(lambda: ens.MeanField(jnp.ones(3)))
VALID = Function(lambda params: jnp.sum(params**2, 1))
STATE = Only(lambda: ens.early_stopping(ens.replicate_optimiser(optax.sgd(0.1)), VALID.right(), 2).init(rows()[0]))
FUNCTIONS = {
    "probed_targets": (
        ens.probed_targets,
        {
            "key": Key(),
            "targets": Kind(lambda: rows()[1], lambda v: None if np.ndim(v) == 1 else False),
            "step": Real(0.1, above=0),
        },
    ),
    "perturbed_hparams": (
        ens.perturbed_hparams,
        {
            "key": Key(),
            "hparams": Some(lambda: np.ones(2)),
            "sigma": Real(0.1, above=0),
            "num": Kind(lambda: 4, lambda v: None if Int(4, least=4, most=10**5).judge(v) is not False else False),
        },
    ),
    "population_gradient": (
        ens.population_gradient,
        {
            "losses": Numbers(lambda: np.ones(4), finite=False),
            "perturbed": Some(lambda: np.arange(8.0).reshape(4, 2)),
            "sigma": Real(0.1, above=0),
            "keep": Mask(lambda: np.ones(4, bool)),
        },
    ),
    "sure": (
        ens.sure,
        {
            "predictions": Numbers(lambda: rows()[0][:2], finite=False),
            "targets": Numbers(lambda: rows()[0][1:3]),
            "noise_variance": Real(0.1, above=0),
        },
    ),
    "cross_validation": (
        ens.cross_validation,
        {
            "inner_loss": Function(len),
            "outer_loss": Function(len),
            "data": Some(lambda: rows()[0]),
            "num_folds": Int(2, 2, R),
            "key": Key(),
        },
    ),
    "Laplace": (ens.evidence.Laplace, {"structure": Only(ens.evidence.Full), "where": Function(len)}),
    "kfold_masks": (
        ens.kfold_masks,
        {
            "key": Key(),
            "num_rows": Int(6, least=6, most=6),
            "num_folds": Int(2, least=2, most=6),
            "strata": Numbers(lambda: np.zeros(6, int), optional=True),
        },
    ),
    "group_masks": (
        ens.group_masks,
        {
            "groups": Numbers(lambda: np.array([0, 1, 1])),
            "fold_of_group": Numbers(lambda: np.array([0, 1]), (2,), (3,)),
        },
    ),
    "holdout_masks": (
        ens.holdout_masks,
        {
            "key": Key(),
            "num_rows": Kind(lambda: 6, lambda value: None if Int(6, least=2).judge(value) else False),
            "fraction": Real(0.5, above=0.1, below=0.9),
            "num": Int(2, least=1, most=10**4),
        },
    ),
    "cross": (
        ens.cross,
        {
            "masks": Kind(lambda: np.ones((2, N), bool), lambda v: None if np.shape(v) == (2, 3) else False),
            "pseudodata": Kind(lambda: rows()[0], lambda v: None if np.shape(v) == (2, 3) else False),
        },
    ),
    "by_fold": (
        ens.by_fold,
        {
            "values": Kind(lambda: rows()[0], lambda v: None if np.size(v) and np.ndim(v) else False),
            "num_folds": Kind(lambda: 2, lambda v: Int(2, 1, 4).judge(v) and R % int(v) == 0),
        },
    ),
    "monte_carlo": (
        ens.monte_carlo,
        {"key": Key(), "data": DATA, "factor": Factor(), "num": Int(2, least=1, most=10**5)},
    ),
    "bootstrap_weights": (
        ens.bootstrap_weights,
        {"key": Key(), "num_rows": Int(3, least=1, most=10**5), "num": Int(2, least=1, most=10**5)},
    ),
    "replica_keys": (ens.replica_keys, {"key": Key(), "num": Int(2, least=1, most=10**5)}),
    "init_replicas": (
        ens.init_replicas,
        {
            "make": Function(lambda key: jax.random.normal(key, (2,))),
            "key": Key(),
            "num": Int(2, least=1, most=10**5),
        },
    ),
    "replica": (ens.replica, {"replicas": REPLICAS, "r": Int(1, -R, R - 1)}),
    "map_replicas": (ens.map_replicas, {"function": Function(lambda one: one["w"]), "replicas": REPLICAS}),
    "replicate_loss": (
        ens.replicate_loss,
        {"loss": Function(len), "data_axes": Some(lambda: 0), "hparams_axes": Some(lambda: None)},
    ),
    "replicate_optimiser": (ens.replicate_optimiser, {"optimiser": OPTIMISER, "settings": Only(lambda: None, True)}),
    "is_finite": (ens.is_finite, {"replicas": REPLICAS}),
    "early_stopping": (
        ens.early_stopping,
        {
            "optimiser": OPTIMISER,
            "valid_losses": VALID,
            "patience": Kind(
                lambda: 2, lambda v: None if numeric(v) is not None and np.all(numeric(v) >= 1) else False
            ),
            "max_updates": Int(2, least=1, optional=True),
        },
    ),
    "best_replicas": (
        ens.best_replicas,
        {"state": STATE, "params": Some(lambda: rows()[0]), "valid_losses": VALID},
    ),
    "one_sigma": (
        ens.one_sigma,
        {
            "losses": Numbers(lambda: np.ones(3), finite=False),
            "ranking": Numbers(lambda: np.ones(3), finite=False),
            "num": Int(2, least=1),
            "threshold": Real(2.0, least=1, infinite=True),
        },
    ),
    "spread_replicas": (
        ens.spread_replicas,
        {
            "num_replicas": Int(2, least=1, most=10**5),
            "num_sets": Int(2, least=1),
            "key": Kind(Key().right, lambda v: v is None or Key().judge(v)),
        },
    ),
    "take_sets": (
        ens.take_sets,
        {
            "hparams": REPLICAS,
            "sets": Kind(
                lambda: np.array([0, 1]),
                lambda v: None if numeric(v) is not None and numeric(v).dtype.kind in "iu" else False,
            ),
        },
    ),
    "outliers": (
        ens.outliers,
        {
            "values": Kind(lambda: np.ones(3), lambda v: None if np.ndim(v) == 1 else False),
            "num_std": Real(4.0, above=0, infinite=True),
        },
    ),
    "replica_mesh": (ens.replica_mesh, {"devices": Only(lambda: jax.devices()[:1], True)}),
    "pad_replicas": (ens.pad_replicas, {"replicas": REPLICAS, "multiple": Int(3, least=1, most=10**5)}),
    "unpad": (ens.unpad, {"replicas": REPLICAS, "num": Int(2, 1, R)}),
    "shard_replicas": (ens.shard_replicas, {"replicas": REPLICAS, "mesh": Only(lambda: ens.replica_mesh())}),
    "replicate_on_devices": (
        ens.replicate_on_devices,
        {"tree": Some(lambda: jnp.ones(2)), "mesh": Only(lambda: ens.replica_mesh())},
    ),
    "gather": (ens.gather, {"replicas": REPLICAS, "num": Int(2, 1, R, optional=True)}),
    "chunked": (
        lambda function, chunk, memory, replicas: ens.chunked(function, chunk, memory)(replicas),
        {
            "function": Function(lambda one: one["w"]),
            "chunk": Kind(lambda: 2, lambda v: v is None or Int(2, least=1).judge(v)),
            "memory": Kind(
                lambda: 1e9, lambda v: v is None or (None if Real(1e9, above=0).judge(v) is not False else False)
            ),
            "replicas": REPLICAS,
        },
    ),
    "MeanField": (ens.MeanField, {"model": Some(lambda: jnp.ones(3)), "log_std": Real(-3.0)}),
    "MeanField.sample": (lambda key: POSTERIOR.right().sample(key), {"key": Key()}),
    "gaussian_kl": (ens.gaussian_kl, {"posterior": POSTERIOR, "log_variance": LogVariance()}),
    "negative_elbo": (
        ens.negative_elbo,
        {
            "posterior": POSTERIOR,
            "log_variance": LogVariance(),
            "log_likelihood": Function(log_likelihood),
            "key": Key(),
            "num_examples": Int(3, least=1),
            "num_samples": Int(2, least=1, most=10**4),
        },
    ),
    "evidence_log_variance": (ens.evidence_log_variance, {"posterior": POSTERIOR}),
    "predictive_log_probs": (
        ens.predictive_log_probs,
        {
            "posterior": POSTERIOR,
            "log_probs": Function(log_likelihood),
            "key": Key(),
            "num_samples": Int(2, least=1, most=10**4),
        },
    ),
}


def calls():
    """`{name: (callable, {argument: Kind})}`."""
    return STATISTICS | FUNCTIONS | EVIDENCE
