"""Inner solvers from jaxopt classes and optax optimisers. The only module that imports jaxopt."""

import inspect
import warnings
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import PyTree

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import jaxopt

from ..ground.checks import Rule, function, integer, real
from .base import AbstractInnerSolver
from .optimiser_state import Transformation
from .proximal import PROXIMAL

Optimiser: TypeAlias = Transformation | Callable[[PyTree], Transformation]

AVERAGE = real("average", least=0, below=1, optional=True)
FUNCTIONS = {"prox", "projection"}  # options that jaxopt calls without looking at them first
FIXED = (  # set here, not by users, or read by the solver's own loop alone
    "has_aux",
    "value_and_grad",
    "jit",
    "unroll",
    "implicit_diff",
    "implicit_diff_solve",
    "stop_if_linesearch_fails",
)


class JaxoptSolver(AbstractInnerSolver):
    """A jaxopt solver class as inner solver.

        JaxoptSolver(jaxopt.LBFGS, maxiter=50)

    **Arguments**: the class and the options of its constructor, without `fun`. `maxiter` is the number of updates of
    one solve. `opt`, where the class takes one, may be a function of the hyperparameters. A class whose `update` takes
    `hyperparams_prox` or `hyperparams_proj` receives `hparams` there:

        JaxoptSolver(jaxopt.ProximalGradient, prox=lambda w, hparams, scaling: prox_lasso(w, jnp.exp(hparams), scaling))
        JaxoptSolver(jaxopt.LBFGSB, bounds=lambda hparams: (lower, upper))

    `bounds`, of a class whose `update` takes them, is the pair, each like the trained arrays, or a function of the
    hyperparameters that returns it. `average` is as for `OptaxSolver`.

    To differentiate through LBFGS give it `linesearch="backtracking"` and stop before it has converged: the derivative
    of jaxopt's default line search, and of steps past convergence, can be NaN, which estimators flag as NONFINITE.

    **Raises** `TypeError` or `ValueError` for a class or option that cannot work.
    """

    def __init__(self, solver_class: Any, *, average: float | None = None, **options: Any):
        _check_class(solver_class)
        known = inspect.signature(solver_class).parameters
        more = {"bounds"} & set(inspect.signature(solver_class.update).parameters)
        if missing := more - set(options):
            raise TypeError(f"{solver_class.__name__} needs the option {', '.join(missing)}")
        if unknown := sorted(set(options) - set(known) - more | {"fun"} & set(options)):
            raise TypeError(f"{solver_class.__name__} takes no option {', '.join(unknown)} here")
        if fixed := [name for name in FIXED if name in options and options[name] != known[name].default]:
            raise ValueError(
                f"{fixed[0]}={options[fixed[0]]!r} would have no effect or break: how the loss is evaluated and "
                "differentiated is the estimator's business; leave the option out"
            )
        options.setdefault("maxiter", known["maxiter"].default)
        # jaxopt branches on its numbers, which NumPy's would become traced arrays for
        options = {name: value.item() if isinstance(value, np.generic) else value for name, value in options.items()}
        options["maxiter"] = _num_steps("maxiter")(options["maxiter"])
        if "tol" in options:
            options["tol"] = real("tol", least=0)(options["tol"])
        for name in FUNCTIONS & set(options):
            function(name, f"as {solver_class.__name__} takes it")(options[name])
        self.solver_class = solver_class
        self.options = options
        self.average = AVERAGE(average)

    def with_num_steps(self, num_steps: int) -> "JaxoptSolver":
        """Returns the same solver with another number of updates."""
        return JaxoptSolver(self.solver_class, average=self.average, **(self.options | {"maxiter": num_steps}))


class OptaxSolver(AbstractInnerSolver):
    """Training with an optax optimiser for `num_steps` updates, through `jaxopt.OptaxSolver`.

    `optimiser` may be a function of the hyperparameters, which makes the optimiser's own settings learnable:

        OptaxSolver(lambda hparams: optax.sgd(jnp.exp(hparams["log_lr"]), 0.9), 100)

    Create the optimiser once: a new one traces everything again.

    With `average=β`, between 0 and 1, the outer loss is that of averaged weights, and so are `params` and `best`:

        w̄_0 = w_0,    w̄_{t+1} = β w̄_t + (1 - β) w_{t+1}

    without a correction for the start. Training and the inner loss stay at w. Short horizons then no longer drive the
    learning rate to zero: a smaller rate lowers the noise of the last weights at once, which is all that a short
    horizon sees, and an average has hardly any noise to lower; see docs/training-state.md.
    *Cost*: one more copy of the weights in the state. *Bias* of implicit estimators: they take w̄ for the solution.

    **Source**: Polyak and Juditsky (1992).

    **Raises** `TypeError` for what is neither an optimiser nor a function, `ValueError` for a number of steps below 1.
    """

    def __init__(self, optimiser: Optimiser, num_steps: int, *, average: float | None = None):
        if not isinstance(optimiser, Transformation) and not callable(optimiser):
            raise TypeError(
                f"optimiser must be an optax optimiser or a function hparams -> optimiser, got {optimiser!r}"
            )
        self.solver_class = jaxopt.OptaxSolver
        self.options = {"opt": optimiser, "maxiter": _num_steps("num_steps")(num_steps)}
        self.average = AVERAGE(average)

    def with_num_steps(self, num_steps: int) -> "OptaxSolver":
        """Returns the same solver with another number of updates."""
        return OptaxSolver(self.options["opt"], num_steps, average=self.average)


def _check_class(solver_class: Any) -> None:
    """Raises `TypeError` for what is no jaxopt solver of a scalar loss without further arguments."""
    update = getattr(solver_class, "update", None)
    if not inspect.isclass(solver_class) or not hasattr(solver_class, "init_state") or update is None:
        raise TypeError(f"solver_class must be a jaxopt solver class such as jaxopt.LBFGS, got {solver_class!r}")
    name, options = solver_class.__name__, inspect.signature(solver_class).parameters
    if "fun" not in options or "block_prox" in options:
        raise TypeError(
            f"{name} minimises no scalar loss of any form (it takes residuals, a fixed-point map or a composite "
            "objective); use a minimiser such as jaxopt.LBFGS, or OptaxSolver"
        )
    taken = inspect.signature(update).parameters.values()
    if more := {p.name for p in taken if p.kind is p.POSITIONAL_OR_KEYWORD} - {"self", "params", "state", *PROXIMAL}:
        raise TypeError(
            f"{name}.update needs {', '.join(sorted(more))}, which there is no way to give here; for constraints use "
            "jaxopt.ProjectedGradient"
        )


def _num_steps(name: str) -> Rule:
    return integer(f"the number of steps ({name})", least=1)
