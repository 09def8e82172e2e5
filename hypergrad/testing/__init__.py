"""The laws of hypergradients, for the tests of your own estimators.

    from hypergrad.testing import Claim, check_estimator

    def test_my_estimator():
        check_estimator(MyEstimator, claim=Claim.EXACT)

`laws` and `solver_laws` hold the laws one by one, `problems` small problems with known answers, `optimisers` optax's
optimisers, `strategies` hypothesis strategies. `check_inner_solver` does the same for the inner solver.
Needs hypothesis (`pip install 'hypergrad-jax[testing]'`); importing hypergrad does not import this.
"""

import importlib.util

if importlib.util.find_spec("hypothesis") is None:
    raise ImportError("hypergrad.testing needs hypothesis: pip install 'hypergrad-jax[testing]'")

from . import laws as laws
from . import optimisers as optimisers
from . import problems as problems
from . import solver_laws as solver_laws
from . import strategies as strategies
from .check import BrokenLawsError as BrokenLawsError
from .check import Claim as Claim
from .check import check_estimator as check_estimator
from .check_solver import check_inner_solver as check_inner_solver
from .problems import Case as Case
from .tolerances import assert_close as assert_close
from .tolerances import loosened as loosened
from .units import units_of_the_losses as units_of_the_losses
