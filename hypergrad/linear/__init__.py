"""Linear solvers for implicit hypergradients, one method a file."""

from .base import AbstractLinearSolver as AbstractLinearSolver
from .base import LinearSolution as LinearSolution
from .identity import Identity as Identity
from .levenberg_marquardt import LevenbergMarquardt as LevenbergMarquardt
from .sgd import SGD as SGD
