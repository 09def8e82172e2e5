"""Statistics and criteria over many models at once, on plain JAX.

`init_replicas`, `replicate_loss` and `replicate_optimiser` turn many models into one problem; `monte_carlo`,
`bootstrap_weights` and `kfold_masks` give every replica its own data; `chi2`, `phi2` and others are statistics of the
predictions; `mean_loss` and others are criteria of hyperparameters; `one_sigma` chooses among trials; `shard_replicas`
spreads an ensemble over devices; `population_gradient` is a hypergradient from perturbed replicas; `evidence` is
Laplace's marginal likelihood.
"""

from . import evidence as evidence
from .calibration import calibration_error as calibration_error
from .calibration import coverage as coverage
from .chunks import chunked as chunked
from .covariance import cholesky as cholesky
from .covariance import covariance as covariance
from .covariance import mask_covariance as mask_covariance
from .covariance import whiten as whiten
from .criteria import Fold as Fold
from .criteria import fold_chi2 as fold_chi2
from .criteria import fold_ensemble_chi2 as fold_ensemble_chi2
from .criteria import fold_phi2 as fold_phi2
from .criteria import full_covariance_loss as full_covariance_loss
from .criteria import log_probability_loss as log_probability_loss
from .criteria import make_folds as make_folds
from .criteria import mean_loss as mean_loss
from .criteria import outer_loss as outer_loss
from .criteria import spread_loss as spread_loss
from .criteria import worst_loss as worst_loss
from .cross_validation import CrossValidation as CrossValidation
from .cross_validation import cross_validation as cross_validation
from .folds import by_fold as by_fold
from .folds import cross as cross
from .folds import group_masks as group_masks
from .folds import holdout_masks as holdout_masks
from .folds import kfold_masks as kfold_masks
from .population import PopulationGradient as PopulationGradient
from .population import perturbed_hparams as perturbed_hparams
from .population import population_gradient as population_gradient
from .pseudodata import bootstrap_weights as bootstrap_weights
from .pseudodata import monte_carlo as monte_carlo
from .replicas import init_replicas as init_replicas
from .replicas import is_finite as is_finite
from .replicas import map_replicas as map_replicas
from .replicas import replica as replica
from .replicas import replica_keys as replica_keys
from .replicas import replicate_loss as replicate_loss
from .replicas import replicate_optimiser as replicate_optimiser
from .risk import probed_targets as probed_targets
from .risk import sure as sure
from .selection import Selection as Selection
from .selection import one_sigma as one_sigma
from .selection import outliers as outliers
from .selection import spread_replicas as spread_replicas
from .selection import take_sets as take_sets
from .sharding import gather as gather
from .sharding import pad_replicas as pad_replicas
from .sharding import replica_mesh as replica_mesh
from .sharding import replicate_on_devices as replicate_on_devices
from .sharding import shard_replicas as shard_replicas
from .sharding import unpad as unpad
from .statistics import BiasVariance as BiasVariance
from .statistics import bias_variance as bias_variance
from .statistics import bootstrap_error as bootstrap_error
from .statistics import chi2 as chi2
from .statistics import ensemble_chi2 as ensemble_chi2
from .statistics import mean_chi2 as mean_chi2
from .statistics import mean_of_best as mean_of_best
from .statistics import negative_log_probability as negative_log_probability
from .statistics import phi2 as phi2
from .stopping import StoppingState as StoppingState
from .stopping import best_replicas as best_replicas
from .stopping import early_stopping as early_stopping
from .variational import MeanField as MeanField
from .variational import evidence_log_variance as evidence_log_variance
from .variational import gaussian_kl as gaussian_kl
from .variational import negative_elbo as negative_elbo
from .variational import predictive_log_probs as predictive_log_probs
