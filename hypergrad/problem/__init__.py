"""The bilevel problem, its losses as functions of arrays, and its checks."""

from .base import PROBLEM as PROBLEM
from .base import BilevelProblem as BilevelProblem
from .base import Holdout as Holdout
from .base import Loss as Loss
from .checks import check as check
from .checks import check_model as check_model
from .checks import explain_derivatives as explain_derivatives
from .checks import refuse_unlearnable as refuse_unlearnable
from .objectives import at_step as at_step
from .objectives import inner_objective as inner_objective
from .objectives import inner_objective_and_state as inner_objective_and_state
from .objectives import outer_objective as outer_objective
from .objectives import outer_value as outer_value
from .objectives import outer_value_and_grads as outer_value_and_grads
from .objectives import reading_all as reading_all
from .objectives import traced_outer_value as traced_outer_value
