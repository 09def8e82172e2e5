"""Black-box searches: trials that are asked for, trained and told.

A `Space` of continuous, integer and categorical leaves is searched by ask and tell (`Random`, `Sobol`, `Grid`,
`FixedList`, `Optuna`, and around them `Descent`, `DivideAndConquer` and `SubnetworkAdaptive`) in `search_trials` and
`two_step`. `Descent` moves continuous leaves by hypergradient from trial to trial, `GradientTuner` within a trial.
"""

from .compilations import compilations as compilations
from .descent import Descent as Descent
from .gradient_tuning import GradientTuner as GradientTuner
from .gradient_tuning import record_norms as record_norms
from .importance import AbstractImportance as AbstractImportance
from .importance import HypergradientImportance as HypergradientImportance
from .importance import PedAnova as PedAnova
from .importance import RidgeImportance as RidgeImportance
from .leaves import Categorical as Categorical
from .leaves import Float as Float
from .leaves import Int as Int
from .leaves import When as When
from .masked import MaskedCNN as MaskedCNN
from .masked import MaskedMLP as MaskedMLP
from .masked import count_params as count_params
from .objective import AbstractObjective as AbstractObjective
from .objective import PerTrial as PerTrial
from .objective import Vmapped as Vmapped
from .optuna import Optuna as Optuna
from .optuna import Pruner as Pruner
from .processes import Processes as Processes
from .run import search_trials as search_trials
from .searcher import AbstractSearcher as AbstractSearcher
from .space import Space as Space
from .state import SearcherState as SearcherState
from .strategies import DivideAndConquer as DivideAndConquer
from .strategies import SubnetworkAdaptive as SubnetworkAdaptive
from .trial import FinishedTrial as FinishedTrial
from .trial import Result as Result
from .trial import Trial as Trial
from .two_step import TwoStepResult as TwoStepResult
from .two_step import n_step as n_step
from .two_step import nested_subset as nested_subset
from .two_step import pareto_front as pareto_front
from .two_step import smallest_within_tolerance as smallest_within_tolerance
from .two_step import two_step as two_step
from .uninformed import FixedList as FixedList
from .uninformed import Grid as Grid
from .uninformed import Random as Random
from .uninformed import Sobol as Sobol
