"""Gradient-based hyperparameter optimisation on JAX.

A `BilevelProblem` is two losses and two data sets; an inner solver (`OptaxSolver`, `JaxoptSolver`) trains; an estimator
(`Reverse`, `Reversible`, `Forward`, `DrMAD`, `Greedy`, `Implicit`, `HOAG`) turns hyperparameters into a value and a
hypergradient; a search (`GradientSearch`, `RandomSearch`, `MAID`, the single loops `SOBA`, `SABA`, `F2SA`) moves them;
`run` repeats a search under a budget; a `Space` of discrete and continuous leaves is searched by ask and tell
(`RandomSearcher`, `SobolSearcher`, `OptunaSearcher`, and around them `DivideAndConquer` and `SubnetworkAdaptive`) in
`search_trials` and `two_step`; `diagnose` says which estimator can be trusted.
"""

from .adjoint import step_vjp as step_vjp
from .checkpoint import CheckpointError as CheckpointError
from .compatibility import warn_if_wrong as _warn_if_wrong
from .curvature import GaussNewton as GaussNewton
from .curvature import gauss_newton as gauss_newton
from .curvature import hessian as hessian
from .diagnose import Diagnosis as Diagnosis
from .diagnose import diagnose as diagnose
from .diagnose import enough_knots as enough_knots
from .estimators.base import AbstractEstimator as AbstractEstimator
from .estimators.drmad import DrMAD as DrMAD
from .estimators.forward import Forward as Forward
from .estimators.greedy import Greedy as Greedy
from .estimators.hoag import HOAG as HOAG
from .estimators.hoag import cubic_tolerance as cubic_tolerance
from .estimators.hoag import exponential_tolerance as exponential_tolerance
from .estimators.hoag import quadratic_tolerance as quadratic_tolerance
from .estimators.implicit import Implicit as Implicit
from .estimators.reverse import OneStep as OneStep
from .estimators.reverse import Reverse as Reverse
from .estimators.reversible import Reversible as Reversible
from .inner import InnerState as InnerState
from .inner import JaxoptSolver as JaxoptSolver
from .inner import OptaxSolver as OptaxSolver
from .linear.base import AbstractLinearSolver as AbstractLinearSolver
from .linear.base import LinearSolution as LinearSolution
from .linear.cg import CG as CG
from .linear.cg import NormalCG as NormalCG
from .linear.direct import Dense as Dense
from .linear.krylov import GMRES as GMRES
from .linear.krylov import MINRES as MINRES
from .linear.neumann import Neumann as Neumann
from .linear.nystrom import Nystrom as Nystrom
from .momentum import MomentumSGD as MomentumSGD
from .problem import BilevelProblem as BilevelProblem
from .problem import epoch_batch as epoch_batch
from .problem import minibatch as minibatch
from .run import Budget as Budget
from .run import run as run
from .search.adaptive_step import adaptive_step as adaptive_step
from .search.base import AbstractSearch as AbstractSearch
from .search.base import Record as Record
from .search.base import SearchState as SearchState
from .search.blackbox.base import AbstractSearcher as AbstractSearcher
from .search.blackbox.compilations import compilations as compilations
from .search.blackbox.importance import AbstractImportance as AbstractImportance
from .search.blackbox.importance import HypergradientImportance as HypergradientImportance
from .search.blackbox.importance import PedAnova as PedAnova
from .search.blackbox.importance import RidgeImportance as RidgeImportance
from .search.blackbox.inside import TuneInside as TuneInside
from .search.blackbox.inside import record_norms as record_norms
from .search.blackbox.masked import MaskedMLP as MaskedMLP
from .search.blackbox.masked import count_params as count_params
from .search.blackbox.objective import PerTrial as PerTrial
from .search.blackbox.objective import Vmapped as Vmapped
from .search.blackbox.sampling import Grid as Grid
from .search.blackbox.sampling import RandomSearcher as RandomSearcher
from .search.blackbox.sampling import SobolSearcher as SobolSearcher
from .search.blackbox.search_trials import search_trials as search_trials
from .search.blackbox.space import Categorical as Categorical
from .search.blackbox.space import Float as Float
from .search.blackbox.space import Int as Int
from .search.blackbox.space import Space as Space
from .search.blackbox.space import When as When
from .search.blackbox.subnetworks import DivideAndConquer as DivideAndConquer
from .search.blackbox.subnetworks import SubnetworkAdaptive as SubnetworkAdaptive
from .search.blackbox.trial import Result as Result
from .search.blackbox.trial import SearcherState as SearcherState
from .search.blackbox.trial import Told as Told
from .search.blackbox.trial import Trial as Trial
from .search.blackbox.two_step import Listed as Listed
from .search.blackbox.two_step import Steps as Steps
from .search.blackbox.two_step import n_step as n_step
from .search.blackbox.two_step import pareto_front as pareto_front
from .search.blackbox.two_step import prefix as prefix
from .search.blackbox.two_step import smallest_within as smallest_within
from .search.blackbox.two_step import two_step as two_step
from .search.blackbox.with_optuna import OptunaSearcher as OptunaSearcher
from .search.f2sa import F2SA as F2SA
from .search.gradient import GradientSearch as GradientSearch
from .search.maid import MAID as MAID
from .search.random import RandomSearch as RandomSearch
from .search.random import evaluate as evaluate
from .search.saba import SABA as SABA
from .search.soba import SOBA as SOBA
from .stats import Counts as Counts
from .stats import Estimate as Estimate
from .stats import Stats as Stats
from .stats import Status as Status
from .value_and_hypergrad import value_and_hypergrad as value_and_hypergrad

_warn_if_wrong()
