"""Hyperparameters and weights that an estimator cannot see, refused by name."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hypergrad as hg
from hypergrad.ground.derivatives import linearize
from hypergrad.testing import laws, loosened, problems

SGD = hg.OptaxSolver(optax.sgd(0.1), 5)
ESTIMATORS = {
    "reverse": hg.Reverse(SGD),
    "forward": hg.Forward(SGD),
    "drmad": hg.DrMAD(SGD),
    "greedy": hg.Greedy(SGD),
    "one step": hg.OneStep(SGD),
    "reversible": hg.Reversible(hg.OptaxSolver(hg.MomentumSGD(0.1, 0.9), 5)),
    "implicit": hg.Implicit(SGD),
    "hoag": hg.HOAG(SGD),
}
SEARCHES = {
    "maid": hg.MAID(SGD),
    "soba": hg.SOBA(*[optax.sgd(0.1)] * 3),
    "saba": hg.SABA(*[optax.sgd(0.1)] * 3, num_batches=2),
    "f2sa": hg.F2SA(*[optax.sgd(0.1)] * 2, 10.0),
}


@pytest.mark.parametrize("name", ESTIMATORS | SEARCHES)
def test_a_hyperparameter_that_enters_nowhere_is_named(name):
    case = problems.ridge()
    hparams = case.hparams | {"forgotten": {"rate": jnp.zeros(2)}}
    with pytest.raises(ValueError, match=r"hparams\['forgotten'\]\['rate'\] enters neither training nor the outer"):
        (ESTIMATORS | SEARCHES)[name].init(case.problem, case.params, hparams)


def test_a_hyperparameter_of_the_first_state_alone_is_named_where_training_goes_on():
    optimiser = lambda h: optax.adagrad(0.1, initial_accumulator_value=jnp.exp(h["first"]))
    case, inner = problems.ridge(), hg.OptaxSolver(optimiser, 4)
    hparams = case.hparams | {"first": jnp.asarray(-1.0)}
    laws.finite_differences(hg.Reverse(inner), problems.Case(case.problem, case.params, hparams))


FORMS = {
    "two leaves": (lambda v: {"l2": v[0], "rate": v[1]}, lambda h: (h["l2"], h["rate"]), r"hparams\['rate'\]"),
    "a vector": (lambda v: v, lambda h: h, r"hparams\[1\]"),
    "a vector in a dictionary": (lambda v: {"both": v}, lambda h: h["both"], r"hparams\['both'\]\[1\]"),
    "a matrix": (lambda v: v[None], lambda h: h[0], r"hparams\[0, 1\]"),
}


def two_settings(get, price=0.0):
    """A penalty and a rate; the rate may have a price in the outer loss."""
    case = problems.ridge()
    fit = lambda w, data: jnp.mean((data["x"] @ w - data["y"]) ** 2)
    inner = lambda w, h, data, key: fit(w, data) + jnp.exp(get(h)[0]) * jnp.sum(w**2)
    outer = lambda w, h, data, key: fit(w, data) + price * get(h)[1] ** 2
    return hg.BilevelProblem(inner, outer, case.problem.train, case.problem.valid), jnp.zeros(3)


@pytest.mark.variants(
    quick=["a vector-*-Implicit", "a matrix-0.0-HOAG", "a vector in a dictionary-0.1-MAID"],
    slow=["a vector-0.1-HOAG", "a vector-0.1-MAID"],
)
@pytest.mark.parametrize("make", [hg.Implicit, hg.HOAG, hg.MAID])
@pytest.mark.parametrize("price", [0.0, 0.1])
@pytest.mark.parametrize("form", FORMS)
def test_implicit_estimators_refuse_a_rate_in_whatever_form(form, price, make):
    put, get, named = FORMS[form]
    problem, params = two_settings(get, price)
    inner = hg.OptaxSolver(lambda h: optax.sgd(jnp.exp(get(h)[1]), 0.9), 5)
    with pytest.raises(ValueError, match=named + " acts only through the optimiser"):
        make(inner).init(problem, params, put(jnp.array([-2.0, -3.0])))


def test_implicit_estimators_refuse_hidden_entries_inside_a_transformation():
    problem, params = two_settings(lambda h: h)
    inner = hg.OptaxSolver(lambda h: optax.sgd(jnp.exp(h[1])), 5)
    function = hg.value_and_hypergrad(problem, hg.Implicit(inner))
    with pytest.raises(ValueError, match=r"hparams\[1\] acts only through the optimiser"):
        function(jnp.array([-2.0, -3.0]), params, laws.KEY)


def test_a_rate_that_follows_the_penalty_is_seen():
    """The optimiser reads h too, but the inner gradient does as well: at the end of training the answer is right."""
    case = problems.ridge()
    rate = lambda h: 1 / (2 + jnp.exp(jnp.max(h["log_l2"])))
    inner = hg.OptaxSolver(lambda h: optax.sgd(rate(h)), 3000)
    laws.closed_form(hg.Implicit(inner, hg.CG(10, rtol=1e-14)), case)


def test_many_penalties_of_which_some_weights_have_no_input_are_accepted():
    """A pixel that is always zero: its penalty has no effect, which is right and not refused."""
    case = problems.ridge(0, 3, 8)
    blank = lambda data: data | {"x": np.asarray(data["x"]) * np.array([1.0, 1.0, 0.0])}
    case = case.replace(train=blank(case.problem.train), valid=blank(case.problem.valid))
    for make in (hg.Reverse, hg.Implicit):
        assert jnp.isfinite(laws.answer(make(SGD), case)[0])


COMPLEX = {"maid": hg.MAID(SGD), "soba": SEARCHES["soba"], "f2sa": SEARCHES["f2sa"]}


@pytest.mark.parametrize("name", COMPLEX)
def test_searches_refuse_complex_weights_by_name(name):
    case = problems.phasors()
    with pytest.raises(TypeError, match="params is complex"):
        COMPLEX[name].init(case.problem, case.params, case.hparams)


def test_exact_reversal_refuses_complex_weights_by_name():
    case = problems.phasors()
    with pytest.raises(TypeError, match="params is complex"):
        laws.answer(hg.Reversible(hg.OptaxSolver(hg.MomentumSGD(0.1, 0.9), 5), exact=True), case)


SOLVERS = {
    "cg": hg.CG(20, rtol=1e-13),
    "normal cg": hg.NormalCG(20, rtol=1e-13),
    "minres": hg.MINRES(20, rtol=1e-13),
    "gmres": hg.GMRES(8, rtol=1e-13),
    "neumann": hg.Neumann(3000, step_size=0.2),
    "dense": hg.Dense(),
    "nystrom": hg.Nystrom(10, damping=1e-9),
}


@pytest.mark.variants(quick=["cg", "gmres", "dense"], slow=["nystrom", "neumann"])
@pytest.mark.parametrize("name", SOLVERS)
def test_complex_weights_under_every_linear_solver(name):
    inner = hg.OptaxSolver(optax.chain(problems.CONJUGATE, optax.sgd(0.3)), 2000)
    with loosened(1e3 if name == "nystrom" else 1):  # its damping is a bias
        laws.closed_form(hg.Implicit(inner, SOLVERS[name]), problems.phasors())


@pytest.mark.slow
def test_complex_weights_under_hoag():
    inner = hg.OptaxSolver(optax.chain(problems.CONJUGATE, optax.sgd(0.3)), 2000)
    estimator, case = hg.HOAG(inner, hg.CG(20, rtol=0.0), schedule=lambda k: 1e-12), problems.phasors()
    laws.closed_form(estimator, case)


@jax.custom_vjp
def half_square(r):
    return jnp.sum(r**2) / 2


half_square.defvjp(lambda r: (half_square(r), r), lambda r, g: (g * r,))


def with_square(square):
    """A ridge problem with one penalty per weight, whose losses square by this function."""
    data = problems.ridge().problem
    fit = lambda w, data: square(data["x"] @ w - data["y"]) / len(data["y"])
    inner = lambda w, h, data, key: fit(w, data) + jnp.sum(jnp.exp(h) * w**2)
    return hg.BilevelProblem(inner, lambda w, h, data, key: fit(w, data), data.train, data.valid)


def squared(r):
    return jnp.sum(r**2) / 2


def assert_same_diagnostics(found, expected):
    for name in found:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6, atol=1e-9)


@pytest.mark.variants(quick=["reverse", "forward"], slow=["reversible", "implicit", "drmad", "greedy", "hoag"])
@pytest.mark.parametrize("name", [*ESTIMATORS, "dense"])
def test_losses_with_a_rule_of_their_own_for_reverse_mode(name):
    """The same numbers as without the rule, also where a forward derivative is taken."""
    estimator = (ESTIMATORS | {"dense": hg.Implicit(SGD, hg.Dense())})[name]
    case, answers = problems.ridge(), []
    for square in (half_square, squared):
        problem, hparams = with_square(square), case.hparams["log_l2"]
        state = estimator.init(problem, case.params, hparams)
        answers.append(estimator.step(problem, hparams, state, laws.KEY)[0])
    np.testing.assert_allclose(answers[0].hypergradient, answers[1].hypergradient, rtol=1e-9, atol=1e-12)
    assert_same_diagnostics(*(answer.stats.diagnostics for answer in answers))


@pytest.mark.variants(quick=["soba"], slow=["maid"])
@pytest.mark.parametrize("name", ["maid", "soba"])
def test_searches_on_losses_with_a_rule_of_their_own_for_reverse_mode(name):
    case, found = problems.ridge(), []
    for square in (half_square, squared):
        problem = with_square(square)
        state = SEARCHES[name].init(problem, case.params, case.hparams["log_l2"])
        found.append(SEARCHES[name].step(problem, state, laws.KEY))
    np.testing.assert_allclose(found[0][0].hparams, found[1][0].hparams, rtol=1e-9)
    assert_same_diagnostics(*(record.stats.diagnostics for _, record in found))


def test_gauss_newton_products_of_a_loss_with_a_rule_of_its_own():
    case, products = problems.ridge(), []
    for square in (half_square, squared):
        parts = hg.GaussNewton(lambda w, h, d, key: d["x"] @ w - d["y"], lambda z, h, d, key, s=square: s(z))
        problem = hg.BilevelProblem(parts, case.problem.outer_loss, case.problem.train, case.problem.valid)
        partitioned = SGD.init(problem, case.params, case.hparams).partitioned
        products.append(parts.product(problem, case.hparams, partitioned, laws.KEY)(case.params + 1))
    np.testing.assert_allclose(products[0], products[1], rtol=1e-12)


@jax.custom_vjp
def clipped(w):
    """The weights, whose gradient is clipped: a rule that is not linear in the cotangent."""
    return w


clipped.defvjp(lambda w: (w, None), lambda _, g: (jnp.clip(g, -0.5, 0.5),))


@pytest.mark.slow
def test_a_gradient_clipped_by_a_rule_of_its_own():
    """The hypergradient at a stationary point where the rule does not clip is that without it."""
    case, estimator, found = problems.ridge(), hg.Implicit(SGD.with_num_steps(500)), []
    train, valid = case.problem.train, case.problem.valid
    for rule in (clipped, lambda w: w):
        fit = lambda w, data, rule=rule: jnp.mean((data["x"] @ rule(w) - data["y"]) ** 2)
        inner = lambda w, h, data, key, fit=fit: fit(w, data) + jnp.sum(jnp.exp(h) * w**2)
        problem = hg.BilevelProblem(inner, lambda w, h, data, key: jnp.sum((w - 1) ** 2), train, valid)
        state = estimator.init(problem, case.params, case.hparams["log_l2"])
        found.append(estimator.step(problem, case.hparams["log_l2"], state, laws.KEY)[0])
    np.testing.assert_allclose(found[0].hypergradient, found[1].hypergradient, rtol=1e-6)


def test_a_rule_without_a_forward_derivative_is_named():
    with pytest.raises(ValueError, match="custom_vjp whose rule is not linear in the cotangent"):
        linearize(clipped, jnp.ones(2))[1](jnp.ones(2))


def test_entries_that_no_step_reads_are_reported_by_place():
    case = problems.tuned()
    inner = hg.OptaxSolver(lambda h: optax.sgd(lambda count: jnp.exp(h["log_rates"][count])), 4)
    free = lambda w, h, data, key: jnp.mean((data["x"] @ w - data["y"]) ** 2)
    problem = hg.BilevelProblem(case.problem.inner_loss, free, case.problem.train, case.problem.valid)
    hparams = {name: case.hparams[name] for name in ("log_l2", "log_rates")}
    estimate, _ = laws.first_step(hg.Reverse(inner), problems.Case(problem, case.params, hparams))
    assert estimate.unreached == ("hparams['log_rates'][4]", "hparams['log_rates'][5]")
    assert laws.first_step(hg.Reverse(SGD), problems.ridge())[0].unreached == ("hparams['unused']",)
