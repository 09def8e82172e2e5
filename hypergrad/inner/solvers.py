"""Inner solvers from jaxopt classes and optax optimisers. The only module that imports jaxopt."""

import inspect
import warnings
from collections.abc import Callable
from typing import Any, TypeAlias, cast

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree
from wadler_lindig import AbstractDoc

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import jaxopt

from ..data.sampler import Whole, as_sampler
from ..ground.checks import Rule, function, integer, real, shown
from ..ground.show import show_call
from ..ground.tree import PartitionedModel, describe
from ..problem import BilevelProblem
from .base import AbstractInnerSolver
from .optimiser_state import Transformation
from .proximal import PROXIMAL

Optimiser: TypeAlias = Transformation | Callable[[PyTree], Transformation]

AVERAGE = real("average", least=0, below=1, optional=True)
FUNCTIONS = {"prox", "projection", "block_prox"}  # options that jaxopt calls without looking at them first
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

    `jaxopt.BlockCoordinateDescent` goes through the rows of one array of weights, with `block_prox` for each. Its inner
    loss is a `jaxopt.objective.CompositeLinearFunction` with the methods `subfun(predictions, hparams, data, key)`,
    `make_linop(hparams, data, key)`, `columnwise_lipschitz_const(hparams, data, key)` and, where there is a linear
    term, `b(hparams, data, key)`; training data are read whole. One epoch counts as one gradient, and `tol` is compared
    with max_j L_j ‖w - w_before‖, a bound on the norm of the proximal gradient that it steps by.

    `bounds`, of a class whose `update` takes them, is the pair, each like the trained arrays, or a function of the
    hyperparameters that returns it. `average` is as for `OptaxSolver`.

    To differentiate through LBFGS give it `linesearch="backtracking"` and stop before it has converged: the derivative
    of jaxopt's default line search, and of steps past convergence, can be NaN, which estimators flag as NONFINITE.

    **Raises** `TypeError` or `ValueError` for a class or option that cannot work.
    """

    def __init__(self, solver_class: Any, *, average: float | None = None, **options: Any):
        _check_class(solver_class)
        known = inspect.signature(solver_class).parameters
        if solver_class is jaxopt.BlockCoordinateDescent:
            solver_class = BlockCoordinateDescent
        more = {"bounds"} & set(inspect.signature(solver_class.update).parameters)
        if missing := (more | {"block_prox"} & set(known)) - set(options):
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

    @property
    def arguments(self) -> dict[str, Any]:
        """The class, the options, and the average where there is one."""
        return {"solver_class": self.solver_class} | self.options | _given(average=self.average)

    def __pdoc__(self, **options: Any) -> AbstractDoc:
        """Shows the call that makes it."""
        return show_call("JaxoptSolver", self.arguments, options)

    def with_num_steps(self, num_steps: int) -> "JaxoptSolver":
        """Returns the same solver with another number of updates."""
        return JaxoptSolver(**self.arguments | {"maxiter": num_steps})

    def objective(self, problem: BilevelProblem, partitioned: PartitionedModel) -> Callable[..., Any]:
        """Returns the inner loss as the class takes it, a function `(arrays, hparams, key)`."""
        if self.solver_class is not BlockCoordinateDescent:
            return super().objective(problem, partitioned)
        if not eqx.is_array(partitioned.arrays) or partitioned.arrays.ndim == 0:
            raise TypeError(
                "BlockCoordinateDescent goes through the rows of one array of weights, and params is "
                f"{describe(partitioned.arrays)}"
            )
        return cast(Callable[..., Any], composite(problem))

    def _refuse_unfit(self, problem: BilevelProblem, partitioned: PartitionedModel) -> None:
        super()._refuse_unfit(problem, partitioned)
        self.objective(problem, partitioned)


def composite(problem: BilevelProblem) -> Any:
    """Returns the inner loss, which is of composite form, on its data: a function of (weights, hparams, key)."""
    train = as_sampler(problem.train)
    if not isinstance(train, Whole):
        raise TypeError("BlockCoordinateDescent reads the training data whole, and train is Batches of them")
    bound, loss, data = jaxopt.objective.CompositeLinearFunction(), problem.inner_loss, train.data
    if not isinstance(loss, type(bound)):
        raise TypeError(
            "BlockCoordinateDescent needs an inner_loss that is a jaxopt.objective.CompositeLinearFunction, got "
            f"{loss!r}; for other losses use jaxopt.ProximalGradient"
        )
    bound.subfun = lambda predictions, hparams, key: loss.subfun(predictions, hparams, data, key)
    for name in ("make_linop", "columnwise_lipschitz_const", "b"):
        of_data = getattr(loss, name)
        setattr(bound, name, lambda hparams, key, of_data=of_data: of_data(hparams, data, key))
    return bound


def _epoch(self: Any, params: Array, state: Any, hyperparams_prox: PyTree, *args: Any) -> Any:
    """Returns the weights and the state after one epoch, which counts as one gradient."""
    ready = self.init_state(params, hyperparams_prox, *args)
    fresh = state._replace(predictions=ready.predictions, subfun_g=ready.subfun_g)
    params, new = jaxopt.BlockCoordinateDescent.update(self, params, fresh, hyperparams_prox, *args)
    largest = jnp.max(self.fun.columnwise_lipschitz_const(*args))
    return params, new._replace(error=largest * new.error, num_grad_eval=state.num_grad_eval + 1)


# Its updates compute predictions anew: they depend on the weights and hyperparameters alone.
BlockCoordinateDescent: Any = type("BlockCoordinateDescent", (jaxopt.BlockCoordinateDescent,), {"update": _epoch})


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
                f"optimiser must be an optax optimiser or a function hparams -> optimiser, got {shown(optimiser)}"
            )
        self.solver_class = jaxopt.OptaxSolver
        self.options = {"opt": optimiser, "maxiter": _num_steps("num_steps")(num_steps)}
        self.average = AVERAGE(average)

    @property
    def arguments(self) -> dict[str, Any]:
        """The optimiser, the number of updates, and the average where there is one."""
        return {"optimiser": self.options["opt"], "num_steps": self.num_steps} | _given(average=self.average)

    def __pdoc__(self, **options: Any) -> AbstractDoc:
        """Shows the call that makes it."""
        return show_call("OptaxSolver", self.arguments, options)

    def with_num_steps(self, num_steps: int) -> "OptaxSolver":
        """Returns the same solver with another number of updates."""
        return OptaxSolver(**self.arguments | {"num_steps": num_steps})


def _given(**arguments: Any) -> dict[str, Any]:
    """Returns the arguments that are not `None`."""
    return {name: value for name, value in arguments.items() if value is not None}


def _check_class(solver_class: Any) -> None:
    """Raises `TypeError` for what is no jaxopt solver of a scalar loss without further arguments."""
    update = getattr(solver_class, "update", None)
    if not inspect.isclass(solver_class) or not hasattr(solver_class, "init_state") or update is None:
        raise TypeError(f"solver_class must be a jaxopt solver class such as jaxopt.LBFGS, got {shown(solver_class)}")
    name, options = solver_class.__name__, inspect.signature(solver_class).parameters
    if "fun" not in options or (
        "block_prox" in options and not issubclass(solver_class, jaxopt.BlockCoordinateDescent)
    ):
        raise TypeError(
            f"{name} minimises no scalar loss of any form (it takes residuals or a fixed-point map); use a minimiser "
            "such as jaxopt.LBFGS, or OptaxSolver"
        )
    taken = inspect.signature(update).parameters.values()
    if more := {p.name for p in taken if p.kind is p.POSITIONAL_OR_KEYWORD} - {"self", "params", "state", *PROXIMAL}:
        raise TypeError(
            f"{name}.update needs {', '.join(sorted(more))}, which there is no way to give here; for constraints use "
            "jaxopt.ProjectedGradient"
        )


def _num_steps(name: str) -> Rule:
    return integer(f"the number of steps ({name})", least=1)
