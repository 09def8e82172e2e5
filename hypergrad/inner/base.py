"""The protocol of inner solvers: one update of a jaxopt solver as the map Φ from one training state to the next."""

import abc
import dataclasses
import inspect
import operator
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ..data.sampler import as_sampler
from ..ground.checks import checked, instance
from ..ground.derivatives import refuse_not_differentiable, remedy
from ..ground.hparams import as_hparams
from ..ground.keys import step_key
from ..ground.outside import ReadsOutside
from ..ground.shapes import remembered
from ..ground.tree import PartitionedModel, strong
from ..problem import (
    PROBLEM,
    BilevelProblem,
    at_step,
    check,
    inner_objective,
    inner_objective_and_state,
    refuse_unlearnable,
)
from .binding import bind
from .optimiser_state import Carried, carried, check_changes
from .proximal import PROXIMAL, Prox, prox_of
from .state import InnerState, SolveStats, first_average, next_average, refuse_mixed, refuse_retyped, typed

OWN_PARAMS = "; weights of a form of its own, as optax.lookahead's, cannot be trained; use average=0.9, or no such part"
EVALUATED = ("value", "grad", "error", "aux")  # of a jaxopt state: what the last update evaluated at its weights


class AbstractInnerSolver(ReadsOutside):
    """The map Φ: (w_t, s_t; λ, key_t) -> (w_{t+1}, s_{t+1}), one update of a jaxopt solver.

    A subclass says which solver: its class, and the options of its constructor without `fun`.

    With `average=β` the state carries averaged weights too, w̄_{t+1} = β w̄_t + (1 - β) w_{t+1} from w̄_0 = w_0. The outer
    loss, `params` and `best` are those of w̄. They are in float32 where the weights are in half precision, and go on
    where training starts warm.
    """

    solver_class: Any = eqx.field(static=True)
    options: dict[str, Any]
    average: float | None

    @abc.abstractmethod
    def with_num_steps(self, num_steps: int) -> "AbstractInnerSolver":
        """Returns the same solver with another number of updates."""

    @property
    def num_steps(self) -> int:
        """Updates in one solve, T."""
        return self.options["maxiter"]

    @property
    def smooth(self) -> bool:
        """True if a solution is a point of zero gradient: no proximal step, no projection."""
        return not set(PROXIMAL) & set(inspect.signature(self.solver_class.update).parameters)

    @property
    def prox(self) -> Prox:
        """The proximal step or projection after every gradient step; the identity where there is none."""
        return prox_of(self.options)

    @property
    def tol(self) -> float | None:
        """jaxopt's option of this name, an absolute gradient norm at which `solve` stops; `None` if not given."""
        return self.options.get("tol")

    @checked(PROBLEM)
    def init(self, problem: BilevelProblem, params: PyTree, hparams: PyTree) -> InnerState:
        """Returns the state before the first update.

        **Raises** `TypeError` or `ValueError` where the arguments do not fit each other, or one update would change the
        type or shape of a parameter.
        """
        partitioned, hparams = check(problem, params, hparams)
        state = self.start(problem, partitioned, hparams)
        if "opt" in self.options:
            remembered(check_changes, self.options["opt"], hparams, partitioned.arrays)
        return state

    @checked(PROBLEM)
    def init_to_learn(
        self, problem: BilevelProblem, params: PyTree, hparams: PyTree, *, differentiable: bool = True
    ) -> InnerState:
        """Returns the state before the first update, of a training whose hyperparameters are to be learned.

        **Raises** what `init` raises, and `ValueError` naming a hyperparameter that can change neither training nor the
        outer loss, or, where it is to be learned by derivatives (`differentiable`), whose derivative is zero, and a
        loss whose derivative is zero, or which has none.
        """
        state = self.init(problem, params, hparams)
        trained = eqx.Partial(self.trained, problem, state)
        remembered(refuse_unlearnable, problem, state.judged, as_hparams(hparams), trained, differentiable)
        return state

    @eqx.filter_jit  # never run: problems of one form are traced once
    def trained(self, problem: BilevelProblem, state: InnerState, hparams: PyTree) -> tuple[InnerState, InnerState]:
        """Returns the state before the first update of the model of `state`, and that after an update of `state`."""
        return self.restart(problem, hparams, state), self.stepped(problem, hparams, state)

    @eqx.filter_jit  # never run, like `trained`
    def stepped(self, problem: BilevelProblem, hparams: PyTree, state: InnerState) -> InnerState:
        """Returns the state after an update of `state`."""
        return self.step(problem, hparams, state, jax.random.key(0))

    @eqx.filter_jit
    def start(self, problem: BilevelProblem, partitioned: PartitionedModel, hparams: PyTree) -> InnerState:
        """Returns the state before the first update, of a model that has been checked.

        Types are made a fixed point of `step`, so that a loop over it compiles once.
        """
        self._refuse_unfit(problem, partitioned)
        refuse_mixed(partitioned.arrays)
        try:
            state = self._first(problem, partitioned, hparams)
            after = eqx.filter_eval_shape(self.stepped, problem, hparams, strong(state))
        except Exception as error:  # of a solver or optimiser that cannot work here, whatever it raises
            loss = inner_objective(problem, partitioned, jax.random.key(0))
            refuse_not_differentiable("inner_loss", lambda arrays: loss(arrays, hparams), partitioned.arrays)
            text = f"{self.name} failed on these parameters: {type(error).__name__}: {error}"
            raise ValueError(text + (OWN_PARAMS if isinstance(error, AttributeError) else remedy(error))) from error
        refuse_retyped(state, after)
        return typed(state, after)

    def restart(self, problem: BilevelProblem, hparams: PyTree, state: InnerState) -> InnerState:
        """Returns the state before the first update, of the model of `state`."""
        return typed(self._first(problem, state.partitioned, hparams), state)

    def resume(self, problem: BilevelProblem, hparams: PyTree, state: InnerState) -> InnerState:
        """Returns `state` for a new training from there, at other hyperparameters.

        Weights, moments and curvature history stay. What `renew` takes anew is, and the counters of schedules in which
        hyperparameters enter start again: λ[t] belongs to step t of one training. Other counters go on.
        """
        if (parts := self._carried(hparams, state)) is None:
            return self.renew(problem, hparams, state)
        return self._fresh(problem, hparams, state, jax.tree.map(operator.or_, parts.copies, parts.clocks))

    def renew(self, problem: BilevelProblem, hparams: PyTree, state: InnerState) -> InnerState:
        """Returns `state` with all that the next step would take from it in place of `hparams` themselves.

        These are the value and gradient that solvers with a line search carry from one update to the next, and copies
        of hyperparameters in the optimiser's state, as `optax.inject_hyperparams` keeps them.
        """
        if not self._resamples:
            fresh = self.restart(problem, hparams, state).solver._asdict()
            evaluated = {name: fresh[name] for name in EVALUATED if name in fresh}
            return dataclasses.replace(state, solver=state.solver._replace(**evaluated))
        parts = self._carried(hparams, state)
        return state if parts is None else self._fresh(problem, hparams, state, parts.copies)

    def refuse_adrift(self, hparams: PyTree, state: InnerState) -> None:
        """Refuses optimisers that a warm start cannot go on with.

        **Raises** `ValueError` naming the part of the optimiser's state whose value at other hyperparameters is
        undefined, or that would be the same at every training.
        """
        if (parts := self._carried(hparams, state)) is not None:
            parts.refuse_adrift(self.num_steps)

    def step(self, problem: BilevelProblem, hparams: PyTree, state: InnerState, key: Array) -> InnerState:
        """Returns Φ(state; hparams, key). Differentiable in `state` and `hparams`."""
        problem = at_step(problem, state.feed, state.solver.iter_num, key)
        solver, args = bind(self, problem, state.partitioned, hparams, key)
        arrays, new = solver.update(state.partitioned.arrays, state.solver, *args)
        # What is only reported stays as it was: not computed at every step, nor its derivative (NaN at zero error).
        now, before = new._asdict(), state.solver._asdict()
        stale = {name: jnp.asarray(before[name], now[name].dtype) for name in self._reported}
        return self._next(state, arrays, new._replace(**stale))

    def solve(
        self, problem: BilevelProblem, hparams: PyTree, state: InnerState, key: Array, atol: Array | float = 0.0
    ) -> tuple[InnerState, SolveStats]:
        """Returns the state after at most `num_steps` updates, and their counts.

        Stops once the gradient norm that the solver reports is at most `atol`, or the solver's own option `tol` if that
        is larger, both absolute. Step t draws with `fold_in(key, t)`. Nothing is stored on the way and nothing
        can be differentiated.
        """
        atol = atol if self.tol is None else jnp.maximum(atol, self.tol)

        def update(carry: tuple[Array, InnerState]) -> tuple[Array, InnerState]:
            t, state = carry
            now = at_step(problem, state.feed, state.solver.iter_num, step_key(key, t))
            solver, args = bind(self, now, state.partitioned, hparams, step_key(key, t), differentiable=False)
            arrays, new = solver.update(state.partitioned.arrays, state.solver, *args)
            return t + 1, self._next(state, arrays, new)

        def unfinished(carry: tuple[Array, InnerState]) -> Array:
            t, state = carry
            return (t < self.num_steps) & ((t == 0) | (jnp.real(state.solver.error) > atol))

        if self._resamples and isinstance(atol, int | float) and atol == 0:
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

    def _first(self, problem: BilevelProblem, partitioned: PartitionedModel, hparams: PyTree) -> InnerState:
        # Solvers that evaluate the loss at the start (LBFGS) do so with one fixed key.
        solver, args = bind(self, problem, partitioned, hparams, jax.random.key(0))
        if "opt" in self.options:  # jaxopt reads but the type of the loss, which `typed` sets
            solver = dataclasses.replace(solver, fun=lambda *_: jnp.zeros(()), value_and_grad=False, has_aux=False)
        average = first_average(self.average, partitioned.arrays)
        first = solver.init_state(partitioned.arrays, *args)
        first = first if partitioned.layer_state is None else first._replace(aux=None)
        return InnerState(partitioned, first, average, as_sampler(problem.train).first_feed())

    def _next(self, state: InnerState, arrays: PyTree, solver: PyTree) -> InnerState:
        """Returns the state after an update to these weights, with the state of layers that the loss returned."""
        partitioned = state.partitioned.with_arrays(arrays)
        if partitioned.layer_state is not None:
            partitioned, solver = partitioned.moved(arrays, solver.aux), solver._replace(aux=None)
        return strong(InnerState(partitioned, solver, next_average(self.average, state.average, arrays), state.feed))

    def objective(self, problem: BilevelProblem, partitioned: PartitionedModel) -> Callable[..., Any]:
        """Returns the inner loss as a function `(arrays, hparams, key)`, with the state of layers that have one."""
        objective = inner_objective if partitioned.layer_state is None else inner_objective_and_state
        return lambda arrays, hparams, key: objective(problem, partitioned, key)(arrays, hparams)

    def _refuse_unfit(self, problem: BilevelProblem, partitioned: PartitionedModel) -> None:
        """Raises `ValueError` where every step reads other data and the solver carries values from step to step."""
        if as_sampler(problem.train).changes and not self._resamples:
            raise ValueError(f'train changes from step to step, and {self.name} carries values on: use order="all"')

    def _fresh(self, problem: BilevelProblem, hparams: PyTree, state: InnerState, where: PyTree) -> InnerState:
        """Returns `state` with those parts of the optimiser's state as they are at the start of training."""
        memory, fresh = state.solver.internal_state, self.restart(problem, hparams, state).solver.internal_state
        memory = jax.tree.map(lambda renewed, new, old: new if renewed else old, where, fresh, memory)
        return dataclasses.replace(state, solver=state.solver._replace(internal_state=memory))

    def _carried(self, hparams: PyTree, state: InnerState) -> Carried | None:
        """Returns what the optimiser's state holds of the hyperparameters, where it can hold any."""
        optimiser = self.options.get("opt")
        return carried(optimiser, hparams, state.partitioned.arrays) if callable(optimiser) else None

    @property
    def name(self) -> str:
        """The name in messages."""
        optimiser = self.options.get("opt")
        return f"inner solver {self.solver_class.__name__}" if optimiser is None else f"optimiser {optimiser}"

    @property
    def _resamples(self) -> bool:
        """True if every update evaluates the loss anew: nothing but its parameters and moments is carried on."""
        return hasattr(self.solver_class, "run_iterator")  # jaxopt's mark of a stochastic solver

    @property
    def _reported(self) -> tuple[str, ...]:
        """Fields of the solver's state that feed no later update."""
        return ("error", "value") if self._resamples else ("error",)


INNER = instance("inner", AbstractInnerSolver, "an inner solver such as OptaxSolver(optax.adam(0.01), 100)")
