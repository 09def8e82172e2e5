"""Inner solvers: any jaxopt solver as the map Φ from one training state to the next.

The only module that imports jaxopt.
"""

import abc
import inspect
import warnings
from collections.abc import Callable
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import jaxopt

from .ground.keys import step_key
from .ground.show import paragraph, show, show_size
from .ground.tree import PartitionedModel, describe, strong
from .problem import BilevelProblem, check, inner_objective

Optimiser: TypeAlias = optax.GradientTransformation | Callable[[PyTree], optax.GradientTransformation]


class InnerState(eqx.Module):
    """The state (w, s) of training: the model and the solver's own state (moments, counters, history)."""

    partitioned: PartitionedModel
    solver: PyTree

    @property
    def params(self) -> PyTree:
        """The model, whole."""
        return self.partitioned.model

    def __repr__(self) -> str:
        """The size of the model, and the updates that the solver has made."""
        updates = getattr(self.solver, "iter_num", None)
        return paragraph("InnerState", (f"params: {show_size(self.partitioned)}", f"updates: {show(updates)}"))


class SolveStats(eqx.Module):
    """The counts of one solve: updates made and gradients evaluated."""

    iterations: Array
    gradients: Array


class AbstractInnerSolver(eqx.Module):
    """The map Φ: (w_t, s_t; λ, key_t) -> (w_{t+1}, s_{t+1}), one update of a jaxopt solver.

    A subclass says which solver: its class, and the options of its constructor without `fun`.
    """

    solver_class: Any = eqx.field(static=True)
    options: dict[str, Any]

    @abc.abstractmethod
    def with_num_steps(self, num_steps: int) -> "AbstractInnerSolver":
        """Returns the same solver with another number of updates."""

    @property
    def num_steps(self) -> int:
        """Updates in one solve, T."""
        return self.options["maxiter"]

    @property
    def smooth(self) -> bool:
        """Whether a solution is a point of zero gradient: no proximal step, no projection."""
        return not {"hyperparams_prox", "hyperparams_proj"} & set(
            inspect.signature(self.solver_class.update).parameters
        )

    def init(self, problem: BilevelProblem, params: PyTree, hparams: PyTree) -> InnerState:
        """Returns the state before the first update.

        **Raises** `TypeError` or `ValueError` where the arguments do not fit each other, or one update would change the
        type or shape of a parameter.
        """
        return self.start(problem, *check(problem, params, hparams))

    @eqx.filter_jit
    def start(self, problem: BilevelProblem, partitioned: PartitionedModel, hparams: PyTree) -> InnerState:
        """Returns the state before the first update, of a model that has been checked.

        Types are made a fixed point of `step`, so that a loop over it compiles once.
        """
        state = self._first(problem, partitioned, hparams)
        after = jax.eval_shape(lambda s: self.step(problem, hparams, s, jax.random.key(0)), state)
        if describe(state.partitioned) != describe(after.partitioned):
            raise TypeError(
                "one inner step changes the types of the parameters: "
                f"{describe(state.partitioned.arrays)} -> {describe(after.partitioned.arrays)}; "
                "do data and params agree in dtype?"
            )
        return _typed(state, after)

    def restart(self, problem: BilevelProblem, hparams: PyTree, state: InnerState) -> InnerState:
        """Returns the state before the first update, of the model of `state`."""
        return _typed(self._first(problem, state.partitioned, hparams), state)

    def resume(self, problem: BilevelProblem, hparams: PyTree, state: InnerState) -> InnerState:
        """Returns `state` for going on at other hyperparameters.

        The value and gradient that solvers with a line search carry to the next update are evaluated anew; moments and
        curvature history stay.
        """
        if self._resamples:
            return state
        fresh = self.restart(problem, hparams, state).solver._asdict()
        outdated = {name: fresh[name] for name in ("value", "grad", "error", "aux") if name in fresh}
        return InnerState(state.partitioned, state.solver._replace(**outdated))

    def step(self, problem: BilevelProblem, hparams: PyTree, state: InnerState, key: Array) -> InnerState:
        """Returns Φ(state; hparams, key). Differentiable in `state` and `hparams`."""
        solver, args = self._bind(problem, state.partitioned, hparams, key, differentiable=True)
        arrays, new = solver.update(state.partitioned.arrays, state.solver, *args)
        # What is only reported stays as it was: not computed at every step, nor its derivative (NaN at zero error).
        now, before = new._asdict(), state.solver._asdict()
        stale = {name: jnp.asarray(before[name], now[name].dtype) for name in self._reported}
        return strong(InnerState(state.partitioned.with_arrays(arrays), new._replace(**stale)))

    def solve(
        self, problem: BilevelProblem, hparams: PyTree, state: InnerState, key: Array, tol: Array | float = 0.0
    ) -> tuple[InnerState, SolveStats]:
        """Returns the state after at most `num_steps` updates, and their counts.

        Stops once the gradient norm that the solver reports is at most `tol`, an absolute number. Step t draws with
        `fold_in(key, t)`. Nothing is stored on the way and nothing can be differentiated.
        """

        def update(carry):
            t, state = carry
            solver, args = self._bind(problem, state.partitioned, hparams, step_key(key, t), differentiable=False)
            arrays, new = solver.update(state.partitioned.arrays, state.solver, *args)
            return t + 1, strong(InnerState(state.partitioned.with_arrays(arrays), new))

        def unfinished(carry):
            t, state = carry
            return (t < self.num_steps) & ((t == 0) | (state.solver.error > tol))

        if self._resamples and isinstance(tol, int | float) and tol == 0:
            step = lambda t, state: self.step(problem, hparams, state, step_key(key, t))
            steps, end = jnp.int32(self.num_steps), jax.lax.fori_loop(0, self.num_steps, step, state)
        else:
            steps, end = jax.lax.while_loop(unfinished, update, (jnp.zeros((), jnp.int32), state))
        return end, SolveStats(steps, self.num_gradients(state, end, steps))

    def num_gradients(self, start: InnerState, end: InnerState, steps: Array | int) -> Array:
        """Returns the inner gradients spent between two states that are `steps` updates apart.

        Solvers with a line search count their own, and have made one before the first update.
        """
        if "num_grad_eval" not in start.solver._fields:
            return jnp.int32(steps)
        return (end.solver.num_grad_eval - start.solver.num_grad_eval).astype(jnp.int32) + 1

    def _first(self, problem, partitioned, hparams) -> InnerState:
        # Solvers that evaluate the loss at the start (LBFGS) do so with one fixed key.
        solver, args = self._bind(problem, partitioned, hparams, jax.random.key(0), differentiable=True)
        return InnerState(partitioned, solver.init_state(partitioned.arrays, *args))

    def _bind(self, problem, partitioned, hparams, key, *, differentiable: bool):
        """Returns the jaxopt solver of these arguments, and what its methods take after their own."""
        options = dict(self.options)
        if callable(options.get("opt")):
            options["opt"] = options["opt"](hparams)
        if "implicit_diff" in inspect.signature(self.solver_class).parameters:
            options["implicit_diff"] = not differentiable  # jaxopt unrolls its line search only without it

        def loss(arrays, hparams, key):
            return inner_objective(problem, partitioned, key)(arrays, hparams)

        return self.solver_class(loss, **options), (hparams, key) if self.smooth else (hparams, hparams, key)

    @property
    def _resamples(self) -> bool:
        """Whether every update evaluates the loss anew: nothing but its parameters and moments is carried on."""
        return hasattr(self.solver_class, "run_iterator")  # jaxopt's mark of a stochastic solver

    @property
    def _reported(self) -> tuple[str, ...]:
        """Fields of the solver's state that feed no later update."""
        return ("error", "value") if self._resamples else ("error",)


class JaxoptSolver(AbstractInnerSolver):
    """A jaxopt solver class as inner solver.

        JaxoptSolver(jaxopt.LBFGS, maxiter=50)

    **Arguments**: the class and the options of its constructor, without `fun`. `maxiter` is the number of updates of
    one solve. `opt`, where the class takes one, may be a function of the hyperparameters. A class whose `update` takes
    `hyperparams_prox` or `hyperparams_proj` receives `hparams` there.

    To differentiate through LBFGS give it `linesearch="backtracking"` and stop before it has converged: the derivative
    of jaxopt's default line search, and of steps past convergence, can be NaN, which estimators flag as NONFINITE.

    **Raises** `TypeError` or `ValueError` for a class or option that cannot work.
    """

    def __init__(self, solver_class: type, **options: Any):
        if not (inspect.isclass(solver_class) and hasattr(solver_class, "init_state")):
            raise TypeError(f"solver_class must be a jaxopt solver class such as jaxopt.LBFGS, got {solver_class!r}")
        known = inspect.signature(solver_class).parameters
        if unknown := sorted(set(options) - set(known) | {"fun"} & set(options)):
            raise TypeError(f"{solver_class.__name__} takes no option {', '.join(unknown)} here")
        options.setdefault("maxiter", known["maxiter"].default)
        _check_num_steps(options["maxiter"], "maxiter")
        self.solver_class = solver_class
        self.options = options

    def with_num_steps(self, num_steps: int) -> "JaxoptSolver":
        """Returns the same solver with another number of updates."""
        return JaxoptSolver(self.solver_class, **(self.options | {"maxiter": num_steps}))


class OptaxSolver(AbstractInnerSolver):
    """Training with an optax optimiser for `num_steps` updates, through `jaxopt.OptaxSolver`.

    `optimiser` may be a function of the hyperparameters, which makes the optimiser's own settings learnable:

        OptaxSolver(lambda hparams: optax.sgd(jnp.exp(hparams["log_lr"]), 0.9), 100)

    Create the optimiser once: a new one traces everything again.

    **Raises** `TypeError` for what is neither an optimiser nor a function, `ValueError` for a number of steps below 1.
    """

    def __init__(self, optimiser: Optimiser, num_steps: int):
        if not isinstance(optimiser, optax.GradientTransformation) and not callable(optimiser):
            raise TypeError(
                f"optimiser must be an optax optimiser or a function hparams -> optimiser, got {optimiser!r}"
            )
        _check_num_steps(num_steps, "num_steps")
        self.solver_class = jaxopt.OptaxSolver
        self.options = {"opt": optimiser, "maxiter": num_steps}

    def with_num_steps(self, num_steps: int) -> "OptaxSolver":
        """Returns the same solver with another number of updates."""
        return OptaxSolver(self.options["opt"], num_steps)


def as_inner_solver(inner: AbstractInnerSolver) -> AbstractInnerSolver:
    """Returns the same solver. **Raises** `TypeError` for anything else."""
    if not isinstance(inner, AbstractInnerSolver):
        raise TypeError(f"inner must be an inner solver such as OptaxSolver(optax.adam(0.01), 100), got {inner!r}")
    return inner


def _check_num_steps(num_steps: int, name: str) -> None:
    if not isinstance(num_steps, int) or num_steps < 1:
        raise ValueError(f"the number of steps ({name}) must be a positive integer, got {num_steps!r}")


def _typed(state: InnerState, like: InnerState) -> InnerState:
    return strong(jax.tree.map(lambda leaf, like: jnp.asarray(leaf, like.dtype), state, like))
