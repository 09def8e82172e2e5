"""Linear solvers for implicit hypergradients, one method a file."""

from .base import AbstractLinearSolver as AbstractLinearSolver
from .base import LinearSolution as LinearSolution
