"""Arrays that are gone or traced, and trees that JAX cannot take apart, are named."""

import jax
import jax.numpy as jnp
import optax
import pytest

import hypergrad as hg
from hypergrad.testing import laws
from hypergrad.testing.problems import ridge

INNER = hg.OptaxSolver(optax.sgd(0.1), 3)
SEARCH = hg.GradientSearch(hg.Reverse(INNER), optax.sgd(0.1))
HPARAMS = {"log_l2": jnp.zeros(2)}


def fit(w, hparams, data, key):
    return jnp.mean((data["x"] @ w - data["y"]) ** 2) + jnp.sum(jnp.exp(hparams["log_l2"]) * w**2)


def good():
    return {"x": jnp.ones((4, 2)), "y": jnp.arange(4.0)}


def problem(**changes):
    return hg.BilevelProblem(fit, fit, good() | changes, good())


def deleted(array):
    gone = jnp.copy(array)
    gone.delete()
    return gone


@pytest.mark.row(23)
def test_deleted_arrays_are_named():
    case, slope = ridge(), hg.value_and_hypergrad(problem(), hg.Greedy(INNER))
    state = jax.tree.map(deleted, SEARCH.init(case.problem, case.params, case.hparams))
    calls = {
        "params": lambda: slope(HPARAMS, deleted(jnp.zeros(2)), laws.KEY),
        "hparams": lambda: slope({"log_l2": deleted(jnp.zeros(2))}, jnp.zeros(2), laws.KEY),
        "train": lambda: problem(x=deleted(jnp.ones((4, 2)))),
        "state": lambda: hg.run(SEARCH, case.problem, state, key=laws.KEY, budget=3),
        "key": lambda: slope(HPARAMS, jnp.zeros(2), deleted(jax.random.key(0))),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=rf"^{name}(\['\w+'\])? .*deleted"):
            call()


@pytest.mark.row(23)
def test_trees_whose_keys_have_no_order_are_named():
    mixed = {1: jnp.ones(2), "a": jnp.ones(2)}
    search = hg.RandomSearch(INNER, lambda key: mixed)
    calls = {
        "params": lambda: SEARCH.init(problem(), mixed, HPARAMS),
        "hparams": lambda: SEARCH.init(problem(), jnp.zeros(2), mixed),
        "train": lambda: hg.BilevelProblem(fit, fit, mixed, good()),
        "prior": lambda: search.init(problem(), jnp.zeros(2), HPARAMS),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=f"^{name} "):
            call()


@pytest.mark.row(23)
def test_functions_of_the_host_name_what_is_traced():
    case = ridge()
    state = SEARCH.init(case.problem, case.params, case.hparams)
    run = lambda key: hg.run(SEARCH, case.problem, state, key=key, budget=3)[0].best.value
    tune = lambda hparams: hg.tune(INNER, case.problem, case.params, hparams, key=laws.KEY).value
    diagnose = lambda key: hg.diagnose(case.problem, hg.Reverse(INNER), case.params, case.hparams, key=key)
    for function, name, argument in (
        (run, "key", laws.KEY),
        (tune, "hparams", case.hparams),
        (diagnose, "key", laws.KEY),
    ):
        with pytest.raises(TypeError, match=f"^{name} holds a traced array"):
            jax.jit(function)(argument)
