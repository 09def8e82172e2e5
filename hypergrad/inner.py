"""Inner solvers: any jaxopt solver as the map Φ from one training state to the next.

The only module that imports jaxopt's solvers.
"""

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.interpreters import partial_eval
from jaxtyping import Array, PyTree

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import jaxopt

from .ground.tree import PartitionedModel, describe, named_leaves, norm, strong
from .problem import BilevelProblem, check, inner_objective


class InnerState(eqx.Module):
    """The state (w, s) of training: the model and the solver's own state (moments, counters, history)."""

    partitioned: PartitionedModel
    solver: PyTree

    @property
    def params(self) -> PyTree:
        """The model, whole."""
        return self.partitioned.model


class SolveStats(eqx.Module):
    """Updates made and gradients evaluated."""

    iterations: Array
    gradients: Array


class JaxoptSolver(eqx.Module):
    """A jaxopt solver class as inner solver.

        JaxoptSolver(jaxopt.LBFGS, maxiter=50)

    **Arguments**: the class and the options of its constructor, without `fun`. `maxiter` is the number of updates of
    one solve. `opt`, where the class takes one, may be a function of the hyperparameters. A class whose `update` takes
    `hyperparams_prox` or `hyperparams_proj` receives `hparams` there.

    To differentiate through LBFGS give it `linesearch="backtracking"` and stop before it has converged: the derivative
    of jaxopt's default line search, and of steps past convergence, can be NaN, which estimators flag as NONFINITE.

    **Raises** `TypeError` or `ValueError` for a class or option that cannot work.
    """

    solver_class: Any = eqx.field(static=True)
    options: dict[str, Any]

    def __init__(self, solver_class: type, **options: Any):
        if not (inspect.isclass(solver_class) and hasattr(solver_class, "init_state")):
            raise TypeError(f"solver_class must be a jaxopt solver class such as jaxopt.LBFGS, got {solver_class!r}")
        known = inspect.signature(solver_class).parameters
        if unknown := sorted(set(options) - set(known) | {"fun"} & set(options)):
            raise TypeError(f"{solver_class.__name__} takes no option {', '.join(unknown)} here")
        options.setdefault("maxiter", known["maxiter"].default)
        if not isinstance(options["maxiter"], int) or options["maxiter"] < 1:
            raise ValueError(f"the number of steps (maxiter) must be a positive integer, got {options['maxiter']!r}")
        self.solver_class = solver_class
        self.options = options

    @property
    def num_steps(self) -> int:
        """Updates in one solve, T."""
        return self.options["maxiter"]

    def init(self, problem: BilevelProblem, params: PyTree, hparams: PyTree) -> InnerState:
        """The state before the first update.

        **Raises** `TypeError` or `ValueError` where the arguments do not fit each other, or one update would change the
        type or shape of a parameter.
        """
        partitioned, hparams = check(problem, params, hparams)
        return self.restart(problem, partitioned.model, hparams)

    @eqx.filter_jit
    def restart(self, problem: BilevelProblem, params: PyTree, hparams: PyTree) -> InnerState:
        """`init` for arguments that have been checked.

        Types are made a fixed point of `step`, so that a loop over it compiles once.
        """
        partitioned = PartitionedModel(params)
        # Solvers that evaluate the loss at the start (LBFGS) do so with one fixed key.
        solver, args = self._solver(problem, partitioned, hparams, jax.random.key(0))
        state = InnerState(partitioned, solver.init_state(partitioned.arrays, *args))
        after = jax.eval_shape(lambda s: self.step(problem, hparams, s, jax.random.key(0)), state)
        if describe(state.partitioned) != describe(after.partitioned):
            raise TypeError(
                "one inner step changes the types of the parameters: "
                f"{describe(state.partitioned.arrays)} -> {describe(after.partitioned.arrays)}; "
                "do data and params agree in dtype?"
            )
        return strong(jax.tree.map(lambda leaf, like: jnp.asarray(leaf, like.dtype), state, after))

    def resume(self, problem: BilevelProblem, hparams: PyTree, state: InnerState) -> InnerState:
        """`state` for going on at other hyperparameters: the value and gradient that solvers with a line search carry
        to the next update are evaluated anew; moments and curvature history stay."""
        if self._resamples:
            return state
        fresh = self.restart(problem, state.params, hparams).solver._asdict()
        outdated = {name: fresh[name] for name in ("value", "grad", "error", "aux") if name in fresh}
        return InnerState(state.partitioned, state.solver._replace(**outdated))

    def step(self, problem: BilevelProblem, hparams: PyTree, state: InnerState, key: Array) -> InnerState:
        """Φ: one update of the solver. Differentiable in `state` and `hparams`."""
        return self._update(problem, hparams, state, key, differentiable=True)

    def solve(
        self, problem: BilevelProblem, hparams: PyTree, state: InnerState, key: Array, tol: Array | float = 0.0
    ) -> tuple[InnerState, SolveStats]:
        """At most `num_steps` updates; step t uses `fold_in(key, t)`. Stops once the gradient norm that the solver
        reports is at most `tol`. Nothing is stored on the way and nothing can be differentiated."""

        def update(carry):
            t, state = carry
            key_t = jax.random.fold_in(key, t)
            return t + 1, self._update(problem, hparams, state, key_t, differentiable=False)

        def unfinished(carry):
            t, state = carry
            return (t < self.num_steps) & ((t == 0) | (state.solver.error > tol))

        if self._resamples and isinstance(tol, int | float) and tol == 0:
            step = lambda t, state: self.step(problem, hparams, state, jax.random.fold_in(key, t))
            steps, end = jnp.int32(self.num_steps), jax.lax.fori_loop(0, self.num_steps, step, state)
        else:
            steps, end = jax.lax.while_loop(unfinished, update, (jnp.zeros((), jnp.int32), state))
        return end, SolveStats(steps, self._gradients(state, end, steps))

    def _gradients(self, start: InnerState, end: InnerState, steps: Array) -> Array:
        """Inner gradients between two states: solvers with a line search count their own, and have made one before the
        first update."""
        if "num_grad_eval" not in start.solver._fields:
            return steps
        return (end.solver.num_grad_eval - start.solver.num_grad_eval).astype(jnp.int32) + 1

    def gradients(self, start: InnerState, end: InnerState) -> Array:
        """Inner gradients spent between two states `num_steps` updates apart."""
        return self._gradients(start, end, jnp.int32(self.num_steps))

    def _update(self, problem, hparams, state, key, *, differentiable: bool) -> InnerState:
        solver, args = self._solver(problem, state.partitioned, hparams, key, differentiable)
        params, solver_state = solver.update(state.partitioned.arrays, state.solver, *args)
        if differentiable:
            # What is only reported stays as it was: not computed at every step, nor its derivative (NaN at zero error).
            now, before = solver_state._asdict(), state.solver._asdict()
            stale = {name: jnp.asarray(before[name], now[name].dtype) for name in self._reported}
            solver_state = solver_state._replace(**stale)
        return strong(InnerState(state.partitioned.with_arrays(params), solver_state))

    def _solver(self, problem, partitioned, hparams, key, differentiable=True):
        options = dict(self.options)
        if callable(options.get("opt")):
            options["opt"] = options["opt"](hparams)
        if "implicit_diff" in inspect.signature(self.solver_class).parameters:
            options["implicit_diff"] = not differentiable  # jaxopt unrolls its line search only without it

        def loss(params, hparams, key):
            return inner_objective(problem, partitioned, key)(params, hparams)

        takes_hparams = {"hyperparams_prox", "hyperparams_proj"} & set(
            inspect.signature(self.solver_class.update).parameters
        )
        args = (hparams, hparams, key) if takes_hparams else (hparams, key)
        return self.solver_class(loss, **options), args

    @property
    def _resamples(self) -> bool:
        """Whether every update evaluates the loss anew: nothing but its parameters and moments is carried on."""
        return hasattr(self.solver_class, "run_iterator")  # jaxopt's mark of a stochastic solver

    @property
    def _reported(self) -> tuple[str, ...]:
        """Fields of the solver's state that feed no later update."""
        return ("error", "value") if self._resamples else ("error",)

    @property
    def smooth(self) -> bool:
        """Whether a solution is a point of zero gradient: no proximal step, no projection."""
        return not {"hyperparams_prox", "hyperparams_proj"} & set(
            inspect.signature(self.solver_class.update).parameters
        )


def OptaxSolver(  # noqa: N802 - reads as a class, returns a JaxoptSolver
    optimiser: optax.GradientTransformation | Callable[[PyTree], optax.GradientTransformation], num_steps: int
) -> JaxoptSolver:
    """Training with an optax optimiser for `num_steps` updates, through `jaxopt.OptaxSolver`.

    `optimiser` may be a function of the hyperparameters, which makes the optimiser's own settings learnable:

        OptaxSolver(lambda hparams: optax.sgd(jnp.exp(hparams["log_lr"]), 0.9), 100)

    Create the optimiser once: a new one traces everything again.
    """
    is_optimiser = isinstance(optimiser, optax.GradientTransformation)
    if not is_optimiser and not callable(optimiser):
        raise TypeError(f"optimiser must be an optax optimiser or a function hparams -> optimiser, got {optimiser!r}")
    return JaxoptSolver(jaxopt.OptaxSolver, opt=optimiser, maxiter=num_steps)


def inner_gradient_norm(problem: BilevelProblem, partitioned: PartitionedModel, hparams: PyTree, key: Array) -> Array:
    """‖∇_w L‖ at the weights of `partitioned`."""
    return norm(jax.grad(inner_objective(problem, partitioned, key))(partitioned.arrays, hparams))


def as_inner_solver(inner: JaxoptSolver) -> JaxoptSolver:
    """The same solver. **Raises** `TypeError` for anything else."""
    if not isinstance(inner, JaxoptSolver):
        raise TypeError(f"inner must be an inner solver such as OptaxSolver(optax.adam(0.01), 100), got {inner!r}")
    return inner


def refuse_unseen(problem: BilevelProblem, inner: JaxoptSolver, state: InnerState, hparams: PyTree) -> None:
    """Refuse what the implicit function theorem cannot see.

    At a stationary point of L the learning rate, momentum and the like leave no trace, and their implicit
    hypergradient is 0 whatever their true effect. **Raises** `ValueError` naming every hyperparameter that enters Φ
    but neither loss, or the solver, if its solutions are not stationary points.
    """
    if not inner.smooth:
        raise ValueError(
            f"{inner.solver_class.__name__} does not end at a zero of the inner gradient (it has a proximal step or a "
            "projection), so implicit estimators do not apply; use a trajectory estimator such as Reverse"
        )
    key = jax.random.key(0)
    in_step = _enters(lambda h: inner.step(problem, h, state, key), hparams)
    in_losses = _enters(
        lambda h: (
            problem.inner_loss(state.params, h, problem.train, key),
            problem.outer_loss(state.params, h, problem.valid, key),
        ),
        hparams,
    )
    paths = [path for path, _ in named_leaves(hparams, "hparams")]
    unseen = [path for path, a, b in zip(paths, in_step, in_losses, strict=True) if a and not b]
    if unseen:
        raise ValueError(
            f"{', '.join(unseen)} acts only through the optimiser: implicit estimators cannot see it (their "
            "hypergradient would be 0 whatever its effect); use Reverse, DrMAD or Greedy"
        )


def _enters(function: Callable, hparams: PyTree) -> list[bool]:
    """For every leaf of `hparams`, whether any output of `function` depends on it."""
    jaxpr = jax.make_jaxpr(function)(hparams).jaxpr
    _, used = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return list(used)
