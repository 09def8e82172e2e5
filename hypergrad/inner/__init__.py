"""Inner solvers."""

from .base import AbstractInnerSolver as AbstractInnerSolver
from .base import as_inner_solver as as_inner_solver
from .solvers import JaxoptSolver as JaxoptSolver
from .solvers import OptaxSolver as OptaxSolver
from .state import InnerState as InnerState
from .state import SolveStats as SolveStats
