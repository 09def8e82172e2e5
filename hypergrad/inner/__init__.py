"""Inner solvers."""

from .base import INNER as INNER
from .base import AbstractInnerSolver as AbstractInnerSolver
from .solvers import JaxoptSolver as JaxoptSolver
from .solvers import OptaxSolver as OptaxSolver
from .state import AbstractTrainedState as AbstractTrainedState
from .state import InnerState as InnerState
from .state import SolveStats as SolveStats
