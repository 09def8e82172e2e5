"""Planted mistakes, most of them from public implementations, are caught by the harness."""

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest

import hypergrad as hg
import hypergrad.estimators.greedy
import hypergrad.estimators.implicit
import hypergrad.estimators.reverse
import hypergrad.linear.base
from hypergrad.testing import BrokenLawsError, Claim, assert_close, check_estimator, laws
from hypergrad.testing.problems import OPTIMISERS

MOMENTUM = {"momentum": OPTIMISERS["momentum"]}


def caught(law, make, claim, **options):
    with pytest.raises(BrokenLawsError, match=f"{law.__name__}.*\n.*\n.*error") as info:
        check_estimator(make, claim=claim, only=[law], examples=2, optimisers=MOMENTUM, shrink=0, **options)
    assert [broken.law.law for broken in info.value.broken] == [law]


@pytest.mark.slow
def test_a_wrong_sign_of_the_direct_term_is_caught():
    """The negative of the sum is kept where the mixed term alone is subtracted (ThrunGroup)."""

    class Negated(hg.AbstractEstimator):
        inner: hg.AbstractInnerSolver

        def init(self, problem, params, hparams):
            return hg.Implicit(self.inner).init(problem, params, hparams)

        def step(self, problem, hparams, state, key):
            estimate, state = hg.Implicit(self.inner, hg.CG(10, rtol=1e-14)).step(problem, hparams, state, key)
            direct = jax.grad(problem.outer_loss, argnums=1)(estimate.params, hparams, problem.valid, key)
            flipped = optax.tree.add_scale(estimate.hypergradient, -2, direct)
            return eqx.tree_at(lambda e: e.hypergradient, estimate, flipped), state

    caught(laws.closed_form, Negated, Claim.STATIONARY)


@pytest.mark.slow
def test_a_wrong_sign_of_the_mixed_term_is_caught(plant):
    def mutation(right):
        def wrong(training, end, *rest):
            found = right(training, end, *rest)
            direct = training.outer_value_and_grads(end)[2]
            flipped = jax.tree.map(lambda d, g: 2 * d - g, direct, found.hypergradient)
            return eqx.tree_at(lambda f: f.hypergradient, found, flipped)

        return wrong

    plant(hypergrad.estimators.implicit, "hypergradient_at_solution", mutation)
    caught(laws.closed_form, lambda inner: hg.Implicit(inner, hg.CG(10, rtol=1e-14)), Claim.STATIONARY)


def test_a_dropped_direct_term_is_caught(plant):
    def mutation(right):
        def wrong(training, end):
            value, adjoint = right(training, end)
            return value, eqx.tree_at(lambda a: a.hypergradient, adjoint, optax.tree.zeros_like(training.hparams))

        return wrong

    plant(hypergrad.estimators.reverse, "start_adjoint", mutation)
    caught(laws.finite_differences, hg.Reverse, Claim.EXACT)


def pull_back(training, state, t, cotangent):
    return training.step_vjp(state, t)[1](cotangent)


class Copy(hg.AbstractEstimator):
    """Reverse mode written again, with room for a mistake in the path or in the step back."""

    inner: hg.AbstractInnerSolver
    path: Callable = lambda states, end: states
    back: Callable = lambda right, *arguments: right(*arguments)

    def init(self, problem, params, hparams):
        return self.inner.init(problem, params, hparams)

    def step(self, problem, hparams, state, key):
        training = hg.Training(self.inner, problem, hparams, key)

        def train(state, t):
            return self.inner.step(problem, hparams, state, jax.random.fold_in(key, t)), state

        def back(carry, at):
            (t, point), (cotangent, total) = at, carry
            cotangent, by_hparams = self.back(pull_back, training, point, t, cotangent)
            return (cotangent, optax.tree.add(total, by_hparams)), None

        steps = jnp.arange(self.inner.num_steps)
        end, states = jax.lax.scan(train, state, steps)
        value, *start = training.outer_cotangent(end)
        (_, found), _ = jax.lax.scan(back, tuple(start), (steps, self.path(states, end)), reverse=True)
        counts = hg.Counts(iterations=self.inner.num_steps, step_vjps=self.inner.num_steps, outer_gradients=1)
        return hg.Estimate(found, value, end.params, hg.Stats(counts)), state


@pytest.mark.slow
def test_the_copy_without_mistakes_passes():
    check_estimator(Copy, claim=Claim.EXACT, optimisers=MOMENTUM, only=[laws.finite_differences])


def off_by_one(states, end):
    """Step t is taken at the point after it."""
    return jax.tree.map(lambda leaf, last: jnp.concatenate([leaf[1:], last[None]]), states, end)


def without_the_start(states, end):
    """The end point alone is scaled, as in a slide on DrMAD."""
    share = lambda leaf: jnp.arange(len(leaf)).reshape(-1, *[1] * (leaf.ndim - 1)) / len(leaf)
    return jax.tree.map(lambda leaf, last: (share(leaf) * last).astype(leaf.dtype), states, end)


def wrapped_around(states, end):
    """The point before the first is the last (drmad)."""
    return jax.tree.map(lambda leaf, last: jnp.concatenate([last[None], leaf[1:]]), states, end)


@pytest.mark.parametrize("mistake", [off_by_one, without_the_start, wrapped_around])
def test_a_wrong_path_is_caught(mistake):
    caught(laws.finite_differences, lambda inner: Copy(inner, path=mistake), Claim.EXACT)


def without_the_hessian(right, training, state, t, cotangent):
    """The adjoint of the weights is passed on unchanged (hippotrainer)."""
    return cotangent, right(training, state, t, cotangent)[1]


def without_the_mixed_derivative(right, training, state, t, cotangent):
    """∂²L/∂w∂λ is never taken (hippotrainer)."""
    return right(training, state, t, cotangent)[0], optax.tree.zeros_like(training.hparams)


def products_swapped(right, training, state, t, cotangent):
    """The product with the Hessian stands where that with the mixed derivative should (HIPS)."""
    found, by_hparams = right(training, state, t, cotangent)
    return found, by_hparams | {"log_l2": cotangent.partitioned.arrays - found.partitioned.arrays}


def with_optimiser(training, optimiser):
    return dataclasses.replace(training, inner=hg.OptaxSolver(optimiser, training.inner.num_steps))


def with_another_rate(right, training, *arguments):
    """The learning rate of the hyperparameters is taken for that of the weights (hippotrainer)."""
    return right(with_optimiser(training, optax.sgd(0.03, 0.9)), *arguments)


def without_one_minus_momentum(right, training, *arguments):
    """The velocity is an average going forwards, a sum going backwards."""
    return right(with_optimiser(training, optax.sgd(0.1 / (1 - 0.9), 0.9)), *arguments)


@pytest.mark.parametrize(
    "mistake",
    [
        without_the_hessian,
        without_the_mixed_derivative,
        products_swapped,
        with_another_rate,
        without_one_minus_momentum,
    ],
)
def test_a_wrong_step_back_is_caught(mistake):
    caught(laws.finite_differences, lambda inner: Copy(inner, back=mistake), Claim.EXACT)


@pytest.mark.slow
def test_a_tenth_of_the_steps_back_is_caught():
    """The horizon is cut and nothing rescaled (drmad)."""
    tenth = lambda inner: hg.Reverse(inner, horizon=-(-inner.num_steps // 10))
    caught(laws.is_reverse, tenth, Claim.QUADRATIC, num_steps=10)


def test_a_learning_rate_left_out_of_the_greedy_step_is_caught(plant):
    def mutation(right):
        return lambda state, by_params: right(state, jax.tree.map(lambda g: g / 0.1, by_params))

    plant(hypergrad.estimators.greedy, "cotangent_of", mutation)
    caught(laws.finite_differences, hg.Greedy, Claim.EXACT, num_steps=1)


@pytest.mark.parametrize(
    ("law", "claim"), [(laws.finite_differences, Claim.EXACT), (laws.chain_rule, Claim.APPROXIMATE)]
)
def test_one_number_for_a_whole_leaf_is_caught(law, claim):
    """A vector of hyperparameters moved as one, and every entry given the same derivative (hippotrainer)."""

    class Broadcast(hg.AbstractEstimator):
        inner: hg.AbstractInnerSolver

        def init(self, problem, params, hparams):
            return hg.Reverse(self.inner).init(problem, params, hparams)

        def step(self, problem, hparams, state, key):
            estimate, state = hg.Reverse(self.inner).step(problem, hparams, state, key)
            same = jax.tree.map(lambda g: jnp.full_like(g, jnp.sum(g)), estimate.hypergradient)
            return eqx.tree_at(lambda e: e.hypergradient, estimate, same), state

    caught(law, Broadcast, claim)


class Mistaken(hg.linear.AbstractLinearSolver):
    """Conjugate gradients or Neumann series as some codes have them."""

    mistake: str

    def solve(self, matvec, b, init=None, rtol=0.0):
        v, r, p = jnp.zeros_like(b), b, b
        for step in range(len(b)):
            if self.mistake == "aliased series":  # p and v are one array (ThrunGroup)
                v = v + 0.1 * (b - matvec(v)) if step else b
                v = v - 0.1 * matvec(v)
                continue
            image = matvec(p)
            alpha = r @ r / (p @ image)
            if self.mistake == "absolute tolerance":  # (hippotrainer)
                alpha = jnp.where(r @ r < 1e-3, 0.0, alpha)
            new = r - alpha * image
            v = v + alpha * p / (0.1 if self.mistake == "scaled step" else 1)  # (moskomule)
            beta = new @ new / (r @ r + (1e-8 if self.mistake == "guarded ratio" else 0))  # (hippotrainer)
            p = new + (1.0 if self.mistake == "old residual" else beta) * p  # (moskomule)
            r = new
        if self.mistake == "swallowed error":  # given up too early, the error caught, zero returned (hippotrainer)
            v = jnp.where(r @ r > 0, jnp.zeros_like(b), v)
        residual = jnp.linalg.norm(b - matvec(v)) / jnp.linalg.norm(b)
        return hg.linear.LinearSolution(v, residual, jnp.int32(len(b)), jnp.bool_(False))


@pytest.mark.parametrize(
    "mistake", ["old residual", "scaled step", "aliased series", "absolute tolerance", "swallowed error"]
)
def test_mistakes_in_linear_solvers_are_caught(mistake):
    caught(laws.closed_form, lambda inner: hg.Implicit(inner, Mistaken(mistake)), Claim.STATIONARY)


@pytest.mark.slow
def test_absolute_numbers_in_linear_solvers_are_caught():
    """Caught even in an estimator that claims nothing: they break the linearity in the outer loss."""
    caught(laws.constants_and_scale, lambda inner: hg.Implicit(inner, Mistaken("guarded ratio")), Claim.APPROXIMATE)


@pytest.mark.slow
def test_an_absolute_tolerance_is_caught_where_the_solver_sees_the_unit(plant):
    """Not where systems are solved in units of their right-hand side, which make it a relative one."""
    plant(hypergrad.linear.base, "exponent", lambda right: lambda tree: jnp.int32(0))
    solver = Mistaken("absolute tolerance")
    caught(laws.constants_and_scale, lambda inner: hg.Implicit(inner, solver), Claim.APPROXIMATE)


@pytest.mark.slow
def test_the_linear_solver_without_mistakes_passes():
    right = lambda inner: hg.Implicit(inner, Mistaken("none"))
    check_estimator(right, claim=Claim.STATIONARY, only=[laws.closed_form, laws.constants_and_scale])


@pytest.mark.variants(quick=["DrMAD", "Implicit"], slow=["Greedy"])
@pytest.mark.parametrize("make", [hg.DrMAD, hg.Greedy, hg.Implicit])
def test_a_claim_too_many_is_caught(make):
    """Among them the implicit hypergradient of an inner problem that is not solved (hippotrainer)."""
    caught(laws.finite_differences, make, Claim.EXACT)


def first_update(step):
    """The first update is -gradient / L with L the gradient's root mean square."""
    params, gradient = jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0])
    updates, _ = step.update(gradient, step.init(params), params, value=jnp.asarray(1.0))
    assert_close(updates, -gradient / jnp.sqrt(12.5))


def test_an_accepted_step_taken_twice_is_caught():
    """An accepted step is applied a second time (hoag)."""
    first_update(hg.adaptive_step())
    with pytest.raises(AssertionError, match="relative error 1 "):
        first_update(optax.chain(hg.adaptive_step(), optax.scale(2.0)))
