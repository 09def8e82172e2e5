"""Gradient-based hyperparameter optimisation on JAX.

A `BilevelProblem` is two losses and two data sets; an inner solver (`OptaxSolver`, `JaxoptSolver`) trains; an estimator
turns hyperparameters into a value and a hypergradient (`Reverse`, `Reversible`, `Forward`, `DrMAD`, `Greedy`,
`Implicit`, `HOAG`, and of a smoothed outer loss `ES`, `PES`, `NRES`, `Combined`); a search moves them
(`GradientSearch`, `RandomSearch`, `MAID`, the single loops `SOBA`, `SABA`, `F2SA`); `run` repeats a search under a
budget; `diagnose` says which estimator can be trusted; `tune` learns hyperparameters during one training run, in one
call. `hypergrad.trials` searches what has no gradient, and `hypergrad.testing` holds estimators to their laws.
"""

from . import curvature as curvature
from . import linear as linear
from . import projections as projections
from . import tolerances as tolerances
from . import trials as trials
from .budget import Budget as Budget
from .curvature import GaussNewton as GaussNewton
from .data.batches import Batches as Batches
from .data.draws import epoch_batch as epoch_batch
from .data.draws import minibatch as minibatch
from .diagnose import diagnose as diagnose
from .diagnose import fewest_knots as fewest_knots
from .estimators.base import AbstractEstimator as AbstractEstimator
from .estimators.common.accuracy import ErrorCheck as ErrorCheck
from .estimators.drmad import DrMAD as DrMAD
from .estimators.evolution.combined import Combined as Combined
from .estimators.evolution.es import ES as ES
from .estimators.evolution.online import NRES as NRES
from .estimators.evolution.online import PES as PES
from .estimators.forward import Forward as Forward
from .estimators.greedy import Greedy as Greedy
from .estimators.greedy import OneStep as OneStep
from .estimators.hoag import HOAG as HOAG
from .estimators.implicit import Implicit as Implicit
from .estimators.reverse import Reverse as Reverse
from .estimators.reversible.estimator import Reversible as Reversible
from .estimators.reversible.momentum import MomentumSGD as MomentumSGD
from .findings import Diagnosis as Diagnosis
from .ground.checkpoint import CheckpointError as CheckpointError
from .ground.compatibility import warn_if_wrong as _warn_if_wrong
from .history import History as History
from .inner import AbstractInnerSolver as AbstractInnerSolver
from .inner import InnerState as InnerState
from .inner import JaxoptSolver as JaxoptSolver
from .inner import OptaxSolver as OptaxSolver
from .linear.cg import CG as CG
from .linear.cg import NormalCG as NormalCG
from .linear.direct import Dense as Dense
from .linear.krylov import GMRES as GMRES
from .linear.krylov import MINRES as MINRES
from .linear.neumann import Neumann as Neumann
from .linear.nystrom import Nystrom as Nystrom
from .problem import BilevelProblem as BilevelProblem
from .run import run as run
from .search.adaptive_step import adaptive_step as adaptive_step
from .search.base import AbstractSearch as AbstractSearch
from .search.base import Record as Record
from .search.base import SearchState as SearchState
from .search.gradient import GradientSearch as GradientSearch
from .search.maid import MAID as MAID
from .search.random import RandomSearch as RandomSearch
from .search.selection import Best as Best
from .search.single_loop.f2sa import F2SA as F2SA
from .search.single_loop.saba import SABA as SABA
from .search.single_loop.soba import SOBA as SOBA
from .spread import spread as spread
from .stats import Counts as Counts
from .stats import Estimate as Estimate
from .stats import Stats as Stats
from .stats import Status as Status
from .training import Training as Training
from .training import evaluate as evaluate
from .tuning.tune import tune as tune
from .value_and_hypergrad import value_and_hypergrad as value_and_hypergrad

__version__ = "0.1.0"

_warn_if_wrong()
