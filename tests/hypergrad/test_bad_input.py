"""Bad input is refused before anything compiles, by an error that names it."""

import dataclasses

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import optax
import pytest

import hypergrad as hg
from hypergrad.testing import laws
from hypergrad.testing.problems import ridge

INNER = hg.OptaxSolver(optax.sgd(0.1), 3)
ESTIMATORS = [hg.Reverse(INNER), hg.DrMAD(INNER), hg.Greedy(INNER), hg.Implicit(INNER), hg.HOAG(INNER)]
every = pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: type(e).__name__)


def fit(w, hparams, data, key):
    return jnp.mean((data["x"] @ w - data["y"]) ** 2) + jnp.sum(jnp.exp(hparams["log_l2"]) * w**2)


def good():
    return {"x": np.ones((4, 2)), "y": np.arange(4.0)}


def problem(**changes):
    return hg.BilevelProblem(fit, fit, good() | changes, good())


HPARAMS = {"log_l2": jnp.zeros(2)}


@pytest.mark.row(19)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_data_that_are_not_finite_are_refused(bad):
    x = np.ones((4, 2))
    x[1, 0] = bad
    with pytest.raises(ValueError, match=r"train\['x'\] holds 1 value"):
        problem(x=x)
    with pytest.raises(ValueError, match=r"valid\['x'\]"):
        hg.BilevelProblem(fit, fit, good(), good() | {"x": x})


@pytest.mark.row(19)
@every
def test_parameters_and_hyperparameters_that_are_not_finite_are_refused(estimator):
    with pytest.raises(ValueError, match=r"params\['w'\]"):
        estimator.init(problem(), {"w": jnp.array([1.0, jnp.nan])}, HPARAMS)
    with pytest.raises(ValueError, match=r"hparams\['log_l2'\]"):
        estimator.init(problem(), jnp.zeros(2), {"log_l2": jnp.array([0.0, jnp.inf])})


@pytest.mark.row(22)
@every
def test_wrong_shapes_are_named(estimator):
    with pytest.raises(ValueError, match="inner_loss.*failed") as error:
        estimator.init(problem(), jnp.zeros(3), HPARAMS)
    assert "f64[3]" in str(error.value) and "f64[4,2]" in str(error.value)
    with pytest.raises(ValueError, match="inner_loss.*failed"):
        estimator.init(problem(), jnp.zeros(2), {"log_l2": jnp.zeros(5)})
    with pytest.raises(ValueError, match="outer_loss.*failed"):
        wrong = hg.BilevelProblem(fit, fit, good(), good() | {"x": np.ones((4, 7))})
        estimator.init(wrong, jnp.zeros(2), HPARAMS)


@pytest.mark.row(22)
def test_a_loss_that_is_no_scalar_is_refused():
    rows = lambda w, h, data, key: (data["x"] @ w) * h["log_l2"][0]
    with pytest.raises(TypeError, match="inner_loss must return a floating scalar"):
        hg.Reverse(INNER).init(hg.BilevelProblem(rows, fit, good(), good()), jnp.zeros(2), HPARAMS)


@pytest.mark.row(22)
def test_a_prior_of_another_shape_is_refused():
    search = hg.RandomSearch(INNER, lambda key: {"log_l2": jnp.zeros(5)})
    with pytest.raises(ValueError, match="prior draws"):
        search.init(problem(), jnp.zeros(2), HPARAMS)


@pytest.mark.row(23)
def test_wrong_types_are_named():
    with pytest.raises(TypeError, match=r"train\['x'\] has dtype object"):
        problem(x=np.array([[1, None], [2, 3]], dtype=object))
    with pytest.raises(TypeError, match=r"train\['y'\] has dtype <U1"):
        problem(y=np.array(["a", "b"]))
    with pytest.raises(TypeError, match=r"hparams\['log_l2'\] is of type int"):
        hg.Reverse(INNER).init(problem(), jnp.zeros(2), {"log_l2": jnp.zeros(2, jnp.int32)})
    with pytest.raises(TypeError, match=r"hparams\['name'\] is of type str"):
        hg.Reverse(INNER).init(problem(), jnp.zeros(2), {"log_l2": jnp.zeros(2), "name": "adam"})
    with pytest.raises(TypeError, match=r"hparams\['name'\] is of type str, .* close over it"):
        hg.evaluate(INNER, problem(), jnp.zeros(2), {"log_l2": jnp.zeros(2), "name": "adam"}, jax.random.key(0))
    with pytest.raises(ValueError, match="params has no floating-point array"):
        hg.Reverse(INNER).init(problem(), jnp.zeros(2, jnp.int32), HPARAMS)


@pytest.mark.row(23)
def test_labels_of_the_wrong_type_are_named():
    def classify(w, hparams, data, key):
        logits = data["x"] @ w
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, data["y"])) + hparams

    labelled = hg.BilevelProblem(classify, classify, good(), good())
    with pytest.raises(ValueError, match="inner_loss.*failed"):
        hg.Reverse(INNER).init(labelled, jnp.zeros((2, 4)), jnp.asarray(0.0))


@pytest.mark.row(24)
def test_an_empty_fold_is_refused():
    with pytest.raises(ValueError, match=r"train\['x'\] is empty"):
        problem(x=np.zeros((0, 2)), y=np.zeros(0))


@pytest.mark.row(26)
@every
def test_no_hyperparameters_are_refused(estimator):
    for nothing in ({}, None, ()):
        with pytest.raises(ValueError, match="hparams has no leaves"):
            estimator.init(problem(), jnp.zeros(2), nothing)
    with pytest.raises(ValueError, match=r"hparams\['log_l2'\] is empty"):
        estimator.init(problem(), jnp.zeros(2), {"log_l2": jnp.zeros(0)})


@pytest.mark.row(27)
@every
def test_one_example_is_enough(estimator):
    one = {"x": np.ones((1, 2)), "y": np.ones(1)}
    value, found = hg.value_and_hypergrad(hg.BilevelProblem(fit, fit, one, one), estimator)(
        HPARAMS, jnp.zeros(2), laws.KEY
    )
    assert jnp.isfinite(value) and jnp.all(jnp.isfinite(found["log_l2"]))


@pytest.mark.row(28)
@pytest.mark.parametrize(
    "budget", [0, -5, {"iterations": 0}, {"seconds": -1.0}, {"gradients": 0}, {"epochs": -0.5}, {}]
)
def test_a_budget_that_is_not_positive_is_refused(budget):
    case = ridge()
    search = hg.GradientSearch(hg.Reverse(INNER), optax.sgd(0.1))
    state = search.init(case.problem, case.params, case.hparams)
    with pytest.raises(ValueError, match="budget must be positive|give one of"):
        budget = hg.Budget(**budget) if isinstance(budget, dict) else budget
        hg.run(search, case.problem, state, key=laws.KEY, budget=budget)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: hg.OptaxSolver(optax.sgd(0.1), 0), "number of steps"),
        (lambda: hg.OptaxSolver("adam", 3), "optimiser"),
        (lambda: hg.JaxoptSolver("LBFGS"), "solver_class"),
        (lambda: hg.JaxoptSolver(jaxopt.LBFGS, max_iter=3), "max_iter"),
        (lambda: hg.Reverse(INNER, horizon=4), "horizon"),
        (lambda: hg.Reverse(INNER, checkpoints="log"), "checkpoints"),
        (lambda: hg.DrMAD(INNER, knots=4), "knots"),
        (lambda: hg.DrMAD(INNER, max_growth=0.0), "max_growth"),
        (lambda: hg.Greedy(INNER, decay=1.5), "decay"),
        (lambda: hg.CG(0), "max_steps"),
        (lambda: hg.Neumann(20, damping=-1.0), "damping"),
        (lambda: hg.BilevelProblem(None, fit, good(), good()), "inner_loss"),
        (lambda: hg.BilevelProblem(fit, 3.0, good(), good()), "outer_loss"),
    ],
)
def test_options_that_cannot_work_are_named(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


@pytest.mark.parametrize("make", [hg.Implicit, hg.HOAG])
def test_implicit_estimators_refuse_what_they_cannot_see(make):
    inner = hg.OptaxSolver(lambda h: optax.sgd(jnp.exp(h["log_lr"]), h["momentum"]), 3)
    hparams = HPARAMS | {"log_lr": jnp.asarray(-2.0), "momentum": jnp.asarray(0.5)}
    with pytest.raises(ValueError, match=r"hparams\['log_lr'\], hparams\['momentum'\] acts only through the optimiser"):
        make(inner).init(problem(), jnp.zeros(2), hparams)
    assert hg.Reverse(inner).init(problem(), jnp.zeros(2), hparams)
    with pytest.raises(ValueError, match=r"\['log_lr'\], hparams\['momentum'\] enters neither training nor the outer"):
        make(INNER).init(problem(), jnp.zeros(2), hparams)


def test_minibatches_that_do_not_fit_are_refused():
    data = {"x": jnp.ones((4, 2)), "y": jnp.ones(3)}
    with pytest.raises(ValueError, match="same leading axis"):
        hg.minibatch(laws.KEY, data, 2)
    with pytest.raises(ValueError, match="size must be a positive integer"):
        hg.minibatch(laws.KEY, good(), 0)
    with pytest.raises(ValueError, match="size is 5"):
        hg.epoch_batch(laws.KEY, 0, good(), 5)


@pytest.mark.row(19)
@pytest.mark.parametrize("bad", [float("nan"), np.float64("inf")])
def test_single_numbers_that_are_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match=r"train\['rate'\]"):
        problem(rate=bad)


@pytest.mark.row(23)
def test_text_among_the_data_is_refused():
    with pytest.raises(TypeError, match=r"train\['name'\]"):
        problem(name="digits")


@pytest.mark.row(23)
def test_half_precision_arrays_are_numbers():
    assert problem(x=np.asarray(jnp.ones((4, 2), jnp.bfloat16))).train["x"].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: hg.Reverse(INNER, horizon=2.5), "horizon"),
        (lambda: hg.Reverse(INNER, horizon="all"), "horizon"),
        (lambda: hg.Neumann(5, step_size=-1.0), "step_size"),
        (lambda: hg.Neumann(5, power_steps=-1), "power_steps"),
        (lambda: hg.Budget(iterations="10"), "iterations"),
        (lambda: hg.Reverse(optax.sgd(0.1)), "inner"),
    ],
)
def test_more_options_that_cannot_work_are_named(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


SEARCH = hg.GradientSearch(hg.Reverse(INNER), optax.sgd(0.1))


def wrong_states(case):
    other = hg.GradientSearch(hg.Reverse(hg.OptaxSolver(optax.adam(0.1), 3)), optax.adam(0.1))
    foreign = other.init(case.problem, case.params, case.hparams)
    bigger = ridge(num_features=4)
    of_bigger = SEARCH.init(bigger.problem, bigger.params, bigger.hparams)
    return [None, case.hparams, foreign.inner_state, foreign, of_bigger]


# Arguments of `run` that cannot work; made when they are tried, as each worker collects the tests.
WRONG_RUNS = {
    "search": lambda case: [None, "search", SEARCH.estimator, hg.GradientSearch],
    "problem": lambda case: [None, case, case.problem.train, hg.BilevelProblem],
    "state": wrong_states,
    "key": lambda case: [None, 3, "key", jnp.zeros(2), jax.random.split(laws.KEY)],
    "budget": lambda case: [None, "4", True, 0, -1, 2.5, float("nan"), float("inf"), [4], 10**30],
    "chunk": lambda case: ["4", True, 0, -1, 2.5, float("nan"), 10**30, 2**31 - 1],
    "callback": lambda case: [3, "print", [print]],
    "progress": lambda case: [None, 1, "yes"],
    "checkpoint": lambda case: [True, 3, np.int64(3), object(), ""],
    "every": lambda case: ["30", True, -1.0, float("nan")],
    "every_steps": lambda case: ["30", True, 0, 2.5],
    "keep": lambda case: [None, 3, "value", lambda record: record.nothing, lambda record: laws.KEY],
    "throw": lambda case: [None, 1, "yes"],
}


@pytest.mark.parametrize("name", WRONG_RUNS)
def test_every_wrong_argument_of_run_is_named(name):
    case = ridge()
    state = SEARCH.init(case.problem, case.params, case.hparams)
    good = {"search": SEARCH, "problem": case.problem, "state": state, "key": laws.KEY, "budget": 3}
    for value in WRONG_RUNS[name](case):
        with pytest.raises((TypeError, ValueError, MemoryError), match=f"^{name} (must be|does not fit|is|fails)"):
            hg.run(**(good | {name: value}))


@pytest.mark.parametrize("budget", [np.int64(4), np.float64(4), jnp.asarray(4), 4.0, hg.Budget(iterations=np.int32(4))])
def test_integers_of_numpy_are_taken(budget):
    case = ridge()
    state = SEARCH.init(case.problem, case.params, case.hparams)
    state, _ = hg.run(SEARCH, case.problem, state, key=jax.random.PRNGKey(0), budget=budget, chunk=np.int64(2))
    assert state.num_steps == 2


def test_a_loss_without_a_hash_is_named():
    """Compiled programs are found by their functions."""
    case = ridge()
    call = {"__call__": lambda self, *args: self.scale * case.problem.outer_loss(*args)}
    loss = lambda **options: dataclasses.make_dataclass("Loss", ["scale"], namespace=call, **options)(1.0)
    problem = lambda outer: hg.BilevelProblem(case.problem.inner_loss, outer, case.problem.train, case.problem.valid)
    with pytest.raises(TypeError, match=r"outer_loss must be a function .* with a hash"):
        problem(loss())
    SEARCH.init(problem(loss(frozen=True)), case.params, case.hparams)


@pytest.mark.parametrize(
    "search", [hg.GradientSearch(hg.Reverse(INNER), optax.sgd(0.1)), hg.MAID(INNER, strong_convexity=1.0)]
)
def test_a_projection_to_another_form_is_named(search):
    case = problem()
    for projection in (lambda h: h["log_l2"], lambda h: {"log_l2": jnp.sum(h["log_l2"])}, lambda h: h["other"]):
        other = dataclasses.replace(search, projection=projection)
        state = other.init(case, jnp.zeros(2), HPARAMS)
        with pytest.raises(ValueError, match="projection (changes the form of|fails on) the hyperparameters"):
            hg.run(other, case, state, key=laws.KEY, budget=9)


def test_a_scalar_of_jax_is_named_by_its_type():
    with pytest.raises(TypeError, match="hparams is of type int64"):
        hg.Reverse(INNER).init(problem(), jnp.zeros(2), jnp.asarray(3))
