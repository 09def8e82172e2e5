"""One training run: its keys, its steps and their derivatives, and the evaluation at its end."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import optax
import pytest

import hypergrad as hg
from hypergrad.ground.keys import end_keys, step_key
from hypergrad.ground.tree import PartitionedModel, differentiable, vdot
from hypergrad.testing import assert_close, laws
from hypergrad.testing.problems import OPTIMISERS, net, ridge

INNERS = {
    "adam": hg.OptaxSolver(OPTIMISERS["adam"], 4),
    "lbfgs": hg.JaxoptSolver(jaxopt.LBFGS, maxiter=4, linesearch="backtracking"),
}


def same_states(found, expected):
    """States agree to rounding, as not all are compiled alike; errors that were never measured are infinite."""
    for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-14)


def test_every_evaluation_has_its_own_key():
    keys = [step_key(laws.KEY, t) for t in range(5)] + list(end_keys(laws.KEY, 5))
    np.testing.assert_array_equal(
        [jax.random.key_data(key) for key in keys],
        [jax.random.key_data(jax.random.fold_in(laws.KEY, t)) for t in range(7)],
    )


@pytest.mark.variants(slow=["adam", "lbfgs"])
@pytest.mark.parametrize("inner", INNERS.values(), ids=INNERS)
def test_forward_and_reverse_derivatives_of_a_step_are_adjoint(inner):
    case = net()
    training = hg.Training(inner, case.problem, case.hparams, laws.KEY)
    state = training.step(inner.init(case.problem, case.params, case.hparams), 0)
    new, pullback = training.step_vjp(state, 1)
    also_new, push = training.step_jvp(state, 1)
    same_states(new, training.step(state, 1))
    same_states(also_new, new)
    inexact = differentiable(state)
    random = lambda seed, like: optax.tree.random_like(jax.random.key(seed), like, jax.random.normal)
    cotangent, tangent, direction = random(1, differentiable(new)), random(2, inexact), random(3, case.hparams)
    by_state, by_hparams = pullback(cotangent)
    assert_close(
        vdot(cotangent, push(tangent, direction)), vdot(by_state, tangent) + vdot(by_hparams, direction), "gradient"
    )


@pytest.mark.variants(quick=["adam"], slow=["lbfgs"])
@pytest.mark.parametrize("inner", INNERS.values(), ids=INNERS)
def test_an_evaluation_is_training_and_the_outer_loss_at_its_end(inner):
    case = net()
    estimate = hg.evaluate(inner, case.problem, case.params, case.hparams, laws.KEY)
    end, solved = inner.solve(case.problem, case.hparams, inner.init(case.problem, case.params, case.hparams), laws.KEY)
    key = jax.random.fold_in(laws.KEY, inner.num_steps)
    assert_close(estimate.value, case.problem.outer_loss(end.params, case.hparams, case.problem.valid, key))
    assert estimate.hypergradient is None and type(estimate.params) is eqx.nn.MLP
    assert estimate.stats.counts.iterations == solved.iterations == inner.num_steps


def test_an_evaluation_takes_integers_as_hyperparameters_and_refuses_what_does_not_fit():
    case, inner = ridge(), INNERS["adam"]
    loss = lambda w, degree, data, key: jnp.mean((data["x"] @ w - data["y"]) ** 2) + 0.1 * jnp.sum(w**degree)
    problem = hg.BilevelProblem(loss, case.problem.outer_loss, case.problem.train, case.problem.valid)
    problem = hg.BilevelProblem(loss, loss, problem.train, problem.valid)
    assert jnp.isfinite(hg.evaluate(inner, problem, case.params, 2, laws.KEY).value)
    with pytest.raises(ValueError, match="inner_loss"):
        hg.evaluate(inner, problem, jnp.zeros(5), 2, laws.KEY)


@pytest.mark.parametrize("inner", INNERS.values(), ids=INNERS)
def test_a_restart_is_the_first_state_again(inner):
    case = ridge()
    first = inner.init(case.problem, case.params, case.hparams)
    later, _ = inner.solve(case.problem, case.hparams, first, laws.KEY)
    rewound = eqx.tree_at(lambda state: state.partitioned, later, first.partitioned)
    again = inner.restart(case.problem, case.hparams, rewound)
    for one, other in zip(jax.tree.leaves(again), jax.tree.leaves(first), strict=True):
        assert (one.dtype, one.weak_type) == (other.dtype, other.weak_type)
    same_states(again, first)


SEARCHES = {
    "gradient": lambda inner: hg.GradientSearch(hg.Reverse(inner), optax.adam(0.1)),
    "implicit": lambda inner: hg.GradientSearch(hg.HOAG(inner), hg.adaptive_step()),
    "random": lambda inner: hg.RandomSearch(inner, lambda key: {"log_l2": jnp.zeros(3), "unused": jnp.zeros(())}),
    "maid": hg.MAID,
}


@pytest.mark.parametrize("make", SEARCHES.values(), ids=SEARCHES)
def test_a_model_is_partitioned_once_on_its_way_into_a_search(make, monkeypatch):
    """Once more for the model that `best` starts with, which any state of an estimator gives whole."""
    made = []
    init = PartitionedModel.__init__
    monkeypatch.setattr(PartitionedModel, "__init__", lambda self, *args: (made.append(1), init(self, *args))[1])
    case, inner = ridge(), INNERS["adam"]
    search = make(inner)
    state = search.init(case.problem, case.params, case.hparams)
    assert len(made) == 2
    eqx.filter_eval_shape(search.step, case.problem, state, laws.KEY)
    assert len(made) == 2


def test_inner_solvers_can_be_told_by_their_class():
    optimiser = OPTIMISERS["momentum"]
    inner, same = hg.OptaxSolver(optimiser, 3), hg.JaxoptSolver(jaxopt.OptaxSolver, opt=optimiser, maxiter=3)
    assert type(inner) is hg.OptaxSolver and isinstance(same, hg.JaxoptSolver)
    assert isinstance(inner, hg.AbstractInnerSolver) and not isinstance(inner, hg.JaxoptSolver)
    longer = inner.with_num_steps(5)
    assert (type(longer), longer.num_steps, inner.num_steps) == (hg.OptaxSolver, 5, 3)
    assert same.with_num_steps(5).num_steps == 5
    case = ridge()
    np.testing.assert_array_equal(*(laws.answer(hg.Reverse(one), case)[1]["log_l2"] for one in (inner, same)))
