"""One training run, from its first state to the outer loss at its end."""

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax
from jaxtyping import Array, ArrayLike, PyTree

from .data.sampler import as_sampler
from .ground.checks import checked, integer, random_key, real
from .ground.derivatives import linearize
from .ground.keys import EndKeys, end_keys, step_key
from .ground.tree import PartitionedModel, differentiable, join, split
from .inner import INNER, AbstractInnerSolver, InnerState, SolveStats
from .inner.stops import naming_solver
from .problem import PROBLEM, BilevelProblem, check_model, outer_value, outer_value_and_grads
from .stats import Counts, Estimate, Stats

STEP = integer("t", least=0, traced=True)
Evaluated = tuple[Estimate, InnerState]  # with the state at the end of training


class Training(eqx.Module):
    """One training run: an inner solver on a problem, at fixed hyperparameters, with the key of all its steps.

    Trajectory estimators are built from `step_vjp`. Step t draws with `fold_in(key, t)`, the outer loss at the end with
    `fold_in(key, T)`, the linear system of an implicit estimator with `fold_in(key, T + 1)`, T = `inner.num_steps`.

    **Example**

        >>> training = hg.Training(inner, problem, log_l2, key)
        >>> end = training.advance(inner.init(problem, w, log_l2), 0, 20)
        >>> [f"{weight:.2f}" for weight in end.params]
        ['0.67', '-0.05', '-1.54']
    """

    inner: AbstractInnerSolver = eqx.field(converter=INNER)
    problem: BilevelProblem = eqx.field(converter=PROBLEM)
    hparams: PyTree
    key: Array = eqx.field(converter=random_key())

    @property
    def keys(self) -> EndKeys:
        """The keys of the losses at the end of training."""
        return end_keys(self.key, self.inner.num_steps)

    def at(self, hparams: PyTree) -> "Training":
        """Returns the same run at other hyperparameters."""
        return dataclasses.replace(self, hparams=hparams)

    def begin(self, state: InnerState, warm_start: bool) -> InnerState:
        """Returns the state to train from: `state` itself, or the first one of its model."""
        begin = self.inner.resume if warm_start else self.inner.restart
        return self.feed(begin(self.problem, self.hparams, state))

    def feed(self, state: InnerState) -> InnerState:
        """Returns the state with the order in which this training reads its data."""
        feed = as_sampler(self.problem.train).begin(state.feed, self.key, state.solver.iter_num)
        return dataclasses.replace(state, feed=feed)

    @checked(STEP)
    def step(self, state: InnerState, t: ArrayLike) -> InnerState:
        """Returns Φ(state; hparams), the state after step t."""
        return self.inner.step(self.problem, self.hparams, state, step_key(self.key, t))

    @checked(STEP)
    def step_vjp(
        self, state: InnerState, t: ArrayLike
    ) -> tuple[InnerState, Callable[[InnerState], tuple[InnerState, PyTree]]]:
        """Returns the state after step t and the pullback c -> (Aᵀc, Bᵀc), A = ∂Φ/∂(w, s) and B = ∂Φ/∂λ at `state`.

        The first cotangent is that of `outer_cotangent`. All have the structure of the state with `None` at what
        carries no gradient.
        """
        phi, inexact = self._map(state, t)
        with naming_solver(self.inner):
            new, pullback, rest_of_new = jax.vjp(phi, inexact, self.hparams, has_aux=True)

        def named(cotangent: InnerState) -> tuple[InnerState, PyTree]:
            with naming_solver(self.inner):
                return pullback(cotangent)

        return join(new, rest_of_new), named

    @checked(STEP)
    def step_jvp(
        self, state: InnerState, t: ArrayLike
    ) -> tuple[InnerState, Callable[[InnerState, PyTree], InnerState]]:
        """Returns the state after step t and the map (z, d) -> A z + B d; tangents as in `step_vjp`."""
        phi, inexact = self._map(state, t)
        new, push, rest_of_new = linearize(phi, inexact, self.hparams, has_aux=True)
        return join(new, rest_of_new), push

    def _map(self, state: InnerState, t: ArrayLike) -> tuple[Callable[[PyTree, PyTree], tuple[PyTree, PyTree]], PyTree]:
        """Returns step t as a function of what can be differentiated in `state`, and that part of `state`."""
        inexact, rest = split(state)

        def phi(inexact: PyTree, hparams: PyTree) -> tuple[PyTree, PyTree]:
            return split(self.inner.step(self.problem, hparams, join(inexact, rest), step_key(self.key, t)))

        return phi, inexact

    @checked(integer("start", least=0, traced=True), integer("stop", least=0, traced=True))
    def advance(self, state: InnerState, start: ArrayLike, stop: ArrayLike) -> InnerState:
        """Returns the state after steps `start ... stop - 1`. Nothing is stored on the way."""
        return jax.lax.fori_loop(start, stop, lambda t, state: self.step(state, t), state)

    @checked(real("atol", least=0))
    def solve(self, state: InnerState, atol: Array | float = 0.0) -> tuple[InnerState, SolveStats]:
        """Returns the end of training and its counts; see `AbstractInnerSolver.solve`."""
        return self.inner.solve(self.problem, self.hparams, state, self.key, atol)

    def outer_value_and_grads(self, end: InnerState) -> tuple[Array, PartitionedModel, PyTree]:
        """Returns `(F, ∂F/∂model, ∂_λ F)`, the outer loss of `end.judged` and its derivatives.

        ∂F/∂model is a `PartitionedModel` with `None` at what carries no gradient; its `arrays` are ∇_w F.
        """
        return outer_value_and_grads(self.problem, self.hparams, end.judged, self.keys.outer)

    def outer_cotangent(self, end: InnerState) -> tuple[Array, InnerState, PyTree]:
        """Returns `(F, c_T, ∂_λ F)`, c_T = ∂F/∂(w, s) at the end of training; it is 0 but at what F judges."""
        value, by_model, by_hparams = self.outer_value_and_grads(end)
        return value, cotangent_of(end, by_model), by_hparams

    def evaluate(self, state: InnerState) -> Evaluated:
        """Trains from `state` and measures the outer loss; returns an estimate without a hypergradient, and the end."""
        end, solved = self.solve(state)
        value = outer_value(self.problem, end.params, self.hparams, self.keys.outer)
        counts = Counts(iterations=solved.iterations, inner_gradients=solved.gradients)
        return Estimate(None, value, end.judged, Stats(counts)), end


def cotangent_of(state: InnerState, by_model: PartitionedModel) -> PyTree:
    """Returns the cotangent on the whole inner state, from that on the model which the outer loss judges.

    It is 0 at all that the judged model is not made of.
    """
    inexact, rest = split(state)
    _, pullback = jax.vjp(lambda inexact: differentiable(join(inexact, rest).judged), inexact)
    return pullback(by_model)[0]


@checked(INNER, PROBLEM, random_key())
def evaluate(
    inner: AbstractInnerSolver, problem: BilevelProblem, params: PyTree, hparams: PyTree, key: Array
) -> Estimate:
    """Trains `params` at fixed hyperparameters and measures the outer loss.

    Returns an `Estimate` whose `hypergradient` is `None`. `hparams` may be any pytree that the losses take, integers
    included. *Cost*: one training run.

    **Raises** `TypeError` or `ValueError` where the arguments do not fit each other.

    **Example**

        >>> print(f"{hg.evaluate(inner, problem, w, log_l2, key).value:.3f}")
        0.352
    """
    return _evaluate(inner, problem, check_model(problem, params, hparams), hparams, key)  # here arrays have values


@eqx.filter_jit
def _evaluate(
    inner: AbstractInnerSolver, problem: BilevelProblem, partitioned: PartitionedModel, hparams: PyTree, key: Array
) -> Estimate:
    start = inner.start(problem, partitioned, hparams)
    training = Training(inner, problem, hparams, key)
    return training.evaluate(training.feed(start))[0]
