"""The Python code of the losses runs twice before the first result, whatever the estimator."""

import collections

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest

import hypergrad as hg
from hypergrad.ground.derivatives import linearize, once
from hypergrad.testing.problems import ridge

STEPS = 3
INNER = hg.OptaxSolver(optax.sgd(0.1, 0.9), STEPS)
REVERSIBLE = hg.OptaxSolver(hg.MomentumSGD(0.1, 0.9), STEPS)
CASES = {
    "Reverse": hg.Reverse(INNER),
    "Reverse(remat=False)": hg.Reverse(INNER, remat=False),
    "Reverse sqrt": hg.Reverse(INNER, checkpoints="sqrt"),
    "Reverse(horizon)": hg.Reverse(INNER, horizon=2, check=None),
    "DrMAD": hg.DrMAD(INNER, check=None),
    "Reversible": hg.Reversible(REVERSIBLE, check=None),
    "Greedy": hg.Greedy(INNER, check=None),
    "Greedy(decay)": hg.Greedy(INNER, decay=1.0, check=None),
    "Forward": hg.Forward(INNER),
    "Implicit": hg.Implicit(INNER, hg.CG(5)),
    "Implicit with a bound": hg.Implicit(INNER, hg.CG(5), power_steps=1),
    "HOAG": hg.HOAG(INNER),
}


def counted(problem):
    """The problem with losses that count how often they are called in Python."""
    calls = collections.Counter()

    def counting(name, loss):
        def call(*arguments):
            calls[name] += 1
            return loss(*arguments)

        return call

    inner, outer = counting("inner", problem.inner_loss), counting("outer", problem.outer_loss)
    return hg.BilevelProblem(inner, outer, problem.train, problem.valid), calls


@pytest.mark.parametrize("name", CASES)
def test_losses_are_traced_twice_before_the_first_result(name):
    """The checks of `init` compare two traces; training, the outer loss and all derivatives take the second."""
    case = ridge()
    problem, calls = counted(case.problem)
    arguments = case.hparams, case.params, jax.random.key(0)
    eqx.filter_eval_shape(hg.value_and_hypergrad(problem, CASES[name]), *arguments)
    assert calls == {"inner": 2, "outer": 2}


SEARCHES = {
    "Reverse": hg.GradientSearch(hg.Reverse(INNER, warm_start=True), optax.adam(0.1)),
    "SOBA": hg.SOBA(optax.sgd(0.1), optax.sgd(0.1), optax.sgd(0.1)),
    "RandomSearch": hg.RandomSearch(INNER, lambda key: {"log_l2": jax.random.normal(key, 3), "unused": jnp.zeros(())}),
}


def by_run(search):
    def call(problem, case):
        state = search.init(problem, case.params, case.hparams)
        hg.run(search, problem, state, key=jax.random.key(0), budget=2, holdout=case.problem.valid)

    return call


def by_tune(problem, case):
    inner = hg.OptaxSolver(LEARNED, 200)
    hparams = {"log_l2": case.hparams, "log_rate": jnp.asarray(-3.0), "momentum": jnp.asarray(0.5)}
    hg.tune(inner, problem, case.params, hparams, key=jax.random.key(0), budget=200)


LEARNED = lambda h: optax.sgd(jnp.exp(h["log_rate"]), h["momentum"])


@pytest.mark.variants(quick=["SOBA", "RandomSearch"], slow=["Reverse", "tune"])
@pytest.mark.parametrize("call", [*map(by_run, SEARCHES.values()), by_tune], ids=[*SEARCHES, "tune"])
def test_a_second_call_traces_no_loss(call):
    """Neither for the checks: what follows from shapes is remembered."""
    case = ridge()
    problem, calls = counted(case.problem)
    if call is by_tune:
        inner, outer = problem.inner_loss, problem.outer_loss
        bare = lambda loss: lambda w, h, data, key: loss(w, h["log_l2"], data, key)
        problem = hg.BilevelProblem(bare(inner), bare(outer), problem.train, problem.valid)
    call(problem, case)
    before = calls.copy()
    call(problem, case)
    assert calls == before and before["inner"] > 0


def test_no_loss_is_traced_for_the_first_state_of_an_optimiser():
    case = ridge()
    problem, calls = counted(case.problem)
    state = INNER.init(problem, case.params, case.hparams)
    before = calls["inner"]
    INNER.restart(problem, case.hparams, state)
    assert calls["inner"] == before > 0


def test_a_function_is_run_once_for_its_value_and_all_derivatives():
    runs = []

    def cube(x):
        runs.append(None)
        return jnp.sum(x**3)

    def derivatives(x):
        function = once(cube)
        slope = once(jax.grad(function))
        return function(x), slope(x), linearize(slope, x)[1](x)

    value, slope, product = jax.jit(derivatives)(jnp.array([1.0, 2.0]))
    assert len(runs) == 1
    assert value == 9 and slope.tolist() == [3, 12] and product.tolist() == [6, 24]
    jax.jit(lambda x: once(cube)(x))(jnp.array([1.0, 2.0]))  # remembered nowhere else
    assert len(runs) == 2
