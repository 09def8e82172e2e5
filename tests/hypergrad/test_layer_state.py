"""Layers with a state: running averages and power iterations, trained, differentiated, frozen or refused by name."""

import contextlib

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import optax
import pytest

import ensembles as ens
import hypergrad as hg
from hypergrad.ground.tree import PartitionedModel
from hypergrad.testing import assert_close, laws
from hypergrad.testing.problems import Case

KEYS = jax.random.split(jax.random.key(0), 3)
STEPS = 3


def rate(hparams):
    return optax.sgd(jnp.exp(hparams["log_rate"]), 0.9)


INNER = hg.OptaxSolver(rate, STEPS)
FIXED = hg.OptaxSolver(optax.sgd(0.05, 0.9), STEPS)


class Normalised(eqx.Module):
    """A convolution, running averages, and a linear layer."""

    layers: eqx.nn.Sequential

    def __init__(self, mode="batch"):
        norm = eqx.nn.BatchNorm(2, "batch", momentum=0.7, mode=mode)
        plain = [eqx.nn.Lambda(jnp.tanh), eqx.nn.Lambda(jnp.ravel), eqx.nn.Linear(8, "scalar", key=KEYS[1])]
        self.layers = eqx.nn.Sequential([eqx.nn.Conv2d(1, 2, 3, key=KEYS[0]), norm, *plain])

    def __call__(self, x, state):
        return self.layers(x.reshape(1, 4, 4), state)


class Spectral(eqx.Module):
    """A linear layer divided by its spectral norm, for which every call makes a power iteration."""

    norm: eqx.nn.SpectralNorm

    def __init__(self):
        self.norm = eqx.nn.SpectralNorm(eqx.nn.Linear(16, 1, key=KEYS[0]), "weight", key=KEYS[1])

    def __call__(self, x, state):
        y, state = self.norm(x, state)
        return y[0], state


def predict(params, x):
    model, state = params
    return jax.vmap(model, in_axes=(0, None), out_axes=(0, None), axis_name="batch")(x, state)


def inner_loss(params, hparams, data, key):
    found, state = predict(params, data["x"])
    penalty = sum(jnp.sum(w**2) for w in jax.tree.leaves(eqx.filter(params[0], eqx.is_inexact_array)))
    return jnp.mean((found - data["y"]) ** 2) + jnp.exp(hparams["log_l2"]) * penalty, state


def outer_loss(params, hparams, data, key):
    found, _ = predict(eqx.nn.inference_mode(params), data["x"])
    return jnp.mean((found - data["y"]) ** 2)


def rows(seed):
    rng = np.random.default_rng(seed)
    return {"x": rng.normal(size=(6, 16)), "y": rng.normal(size=6)}


def case_of(make=Normalised, **options):
    problem = hg.BilevelProblem(inner_loss, outer_loss, rows(0), rows(1), **options)
    hparams = {"log_l2": jnp.asarray(-4.0), "log_rate": jnp.asarray(-3.0)}
    return Case(problem, eqx.nn.make_with_state(make)(), hparams)


def without_rate(case):
    return case.replace(hparams={"log_l2": case.hparams["log_l2"]})


EXACT = {
    "reverse": hg.Reverse(INNER, remat=False),
    "reverse, sqrt, averaged": hg.Reverse(hg.OptaxSolver(rate, STEPS, average=0.6), checkpoints="sqrt"),
    "forward": hg.Forward(INNER),
    "drmad, every knot": hg.DrMAD(INNER, knots=STEPS),
}


@pytest.mark.variants(slow=["forward", "reverse", "drmad, every knot"])
@pytest.mark.parametrize("estimator", EXACT.values(), ids=EXACT)
def test_hypergradients_go_through_running_averages(estimator):
    laws.finite_differences(estimator, case_of())


def by_hand(case, hparams):
    """Returns the model, its state and their outer loss after a loop that uses nothing of this library."""
    (model, state), optimiser = case.params, rate(hparams)
    weights, rest = eqx.partition(model, eqx.is_inexact_array)
    moments = optimiser.init(weights)
    for _ in range(STEPS):
        loss = lambda w, state=state: inner_loss((eqx.combine(w, rest), state), hparams, case.problem.train, None)
        gradient, state = jax.grad(loss, has_aux=True)(weights)
        updates, moments = optimiser.update(gradient, moments, weights)
        weights = optax.apply_updates(weights, updates)
    end = eqx.combine(weights, rest), state
    return outer_loss(end, hparams, case.problem.valid, None), end


@pytest.mark.variants(slow=["spectral norm", "exponential averages"])
@pytest.mark.parametrize("make", [lambda: Normalised("ema"), Spectral], ids=["exponential averages", "spectral norm"])
def test_other_states_move_and_are_differentiated_as_by_hand(make):
    """Spectral norm stops gradients by itself, so that differences would tell something else: a warning says so."""
    case, stops = case_of(make), make is Spectral
    compiled = eqx.filter_jit(eqx.filter_value_and_grad(lambda h: by_hand(case, h), has_aux=True))
    (value, end), expected = compiled(case.hparams)
    with pytest.warns(UserWarning, match="stop_gradient") if stops else contextlib.nullcontext():
        assert_close(laws.answer(hg.Reverse(INNER), case), (value, expected), "gradient")
    found = hg.evaluate(INNER, case.problem, case.params, case.hparams, laws.KEY).params
    assert_close(eqx.filter(found, eqx.is_inexact_array), eqx.filter(end, eqx.is_inexact_array))


@pytest.mark.slow
def test_a_constant_state_would_give_another_hypergradient():
    """An estimator that forgets the running averages would find another number."""
    case = case_of()

    def forgetful(params, hparams, data, key):
        model, state = params
        return outer_loss((model, jax.lax.stop_gradient(state)), hparams, data, key)

    problem = hg.BilevelProblem(inner_loss, forgetful, case.problem.train, case.problem.valid)
    found, wrong = (
        laws.answer(hg.Reverse(INNER), Case(p, case.params, case.hparams))[1] for p in (case.problem, problem)
    )
    assert abs(found["log_rate"] - wrong["log_rate"]) > 1e-3 * abs(found["log_rate"])


SEARCHES = {
    "greedy": hg.GradientSearch(hg.Greedy(FIXED, check=None), optax.adam(0.1)),
    "drmad": hg.GradientSearch(hg.DrMAD(FIXED, warm_start=True, check=None), optax.adam(0.1)),
    "implicit": hg.GradientSearch(hg.Implicit(FIXED, hg.CG(3), warm_start=True), optax.adam(0.1)),
    "soba": hg.SOBA(optax.sgd(0.01), optax.sgd(0.01), optax.sgd(0.01)),
    "f2sa": hg.F2SA(optax.sgd(0.01), optax.sgd(0.01), 10.0),
    "saba": hg.SABA(optax.sgd(0.01), optax.sgd(0.01), optax.sgd(0.01), 2),
}


SLOW = ("drmad", "f2sa", "greedy", "implicit", "saba")


@pytest.mark.slow
@pytest.mark.parametrize(
    "search",
    [pytest.param(s, id=name, marks=[pytest.mark.slow] if name in SLOW else []) for name, s in SEARCHES.items()],
)
def test_searches_carry_the_state_of_layers(search):
    case = without_rate(case_of())
    start = search.init(case.problem, case.params, case.hparams)
    state, history = hg.run(search, case.problem, start, key=laws.KEY, budget=3 * STEPS, callback=lambda *_: False)
    assert np.all(np.isfinite(history.value)) and not np.any(history.stats.status & int(hg.Status.NONFINITE))
    means = lambda params: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params[1])])
    assert not np.allclose(means(state.model), means(case.params))
    found = outer_loss(state.best.params, state.best.hparams, case.problem.valid, laws.KEY)
    assert_close(found, state.best.value)


@pytest.mark.slow
def test_an_implicit_estimator_says_that_it_is_away_from_a_solution():
    case = without_rate(case_of())
    estimate, _ = laws.first_step(hg.Implicit(FIXED, hg.CG(3)), case)
    assert estimate.stats.status & hg.Status.INNER_UNCONVERGED


@pytest.mark.slow
def test_diagnose_measures_estimators_on_layers_with_a_state():
    case = without_rate(case_of())
    found = hg.diagnose(
        case.problem, [hg.DrMAD(FIXED, knots=STEPS, check=None)], case.params, case.hparams, key=laws.KEY
    ).findings[0]
    assert found.verdict == "right" and found.error < 1e-9


def frozen_loss(params, hparams, data, key):
    found, _ = predict(params, data["x"])
    return jnp.mean((found - data["y"]) ** 2) * jnp.exp(hparams["log_l2"])


@pytest.mark.slow
def test_frozen_layers_need_nothing_special():
    """Neither the state nor initial values that stand in the model are trained."""
    model, state = eqx.nn.make_with_state(Normalised)()
    _, state = predict((model, state), rows(0)["x"])
    frozen = eqx.nn.inference_mode(model)
    problem = hg.BilevelProblem(frozen_loss, frozen_loss, rows(0), rows(1))
    case = Case(problem, (frozen, state), {"log_l2": jnp.asarray(0.1)})
    laws.finite_differences(hg.Reverse(FIXED), case)
    end = hg.evaluate(FIXED, problem, case.params, case.hparams, laws.KEY).params
    for one, other in zip(jax.tree.leaves(end[1]), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(one, other)
    trained = PartitionedModel(Normalised()).arrays.layers[1]  # made without `make_with_state`
    assert trained.weight is not None and not jax.tree.leaves(trained.batch_state_index)


@pytest.mark.slow
def test_replicas_have_a_state_each():
    case = case_of()
    scaled = lambda r: jax.tree.map(lambda w: w * (1 + r) if eqx.is_inexact_array(w) else w, case.params)
    alone = [scaled(r) for r in range(2)]
    together = jax.tree.map(lambda *leaves: jnp.stack(leaves) if eqx.is_array(leaves[0]) else leaves[0], *alone)
    problem = hg.BilevelProblem(
        ens.replicate_loss(inner_loss), ens.replicate_loss(outer_loss), case.problem.train, case.problem.valid
    )
    inner = hg.OptaxSolver(ens.replicate_optimiser(optax.sgd(0.05, 0.9)), STEPS)
    hparams = {"log_l2": case.hparams["log_l2"]}
    found = hg.evaluate(inner, problem, together, hparams, laws.KEY).params
    for r, params in enumerate(alone):
        one = hg.evaluate(FIXED, case.problem, params, hparams, laws.KEY).params
        assert_close(eqx.filter(ens.replica(found, r), eqx.is_inexact_array), eqx.filter(one, eqx.is_inexact_array))


def test_states_that_cannot_be_carried_are_refused_by_name():
    case = case_of()
    start = lambda problem, params=case.params, inner=INNER: hg.Reverse(inner).init(problem, params, case.hparams)
    with pytest.raises(ValueError, match="LBFGS.*use OptaxSolver"):
        start(case.problem, inner=hg.JaxoptSolver(jaxopt.LBFGS, maxiter=2))
    of = lambda inner, outer=outer_loss: hg.BilevelProblem(inner, outer, case.problem.train, case.problem.valid)
    with pytest.raises(TypeError, match="form of params\\[1\\]"):
        start(of(lambda *args: (inner_loss(*args)[0], jnp.zeros(3))))
    with pytest.raises(TypeError, match="params must be a pair"):
        start(of(lambda w, h, d, k: (jnp.sum(w**2), w), lambda w, h, d, k: jnp.sum(w)), jnp.ones(3))
    with pytest.raises(TypeError, match="outer_loss must return a floating scalar, it"):
        start(of(inner_loss, inner_loss))
    backwards = hg.Reversible(hg.OptaxSolver(hg.MomentumSGD(0.1), 2))
    with pytest.raises(TypeError, match="state of layers"):
        hg.value_and_hypergrad(case.problem, backwards)(without_rate(case).hparams, case.params, laws.KEY)


@pytest.mark.slow
def test_diagnose_measures_what_a_constant_state_leaves_out():
    """L = ½(w - λ)², s ← 0.9 s + 0.1 w, F = w + 2s: without the state dw/dλ alone is left."""

    def inner_loss(params, h, data, key):
        w, s = params
        return (w - h) ** 2 / 2, 0.9 * s + 0.1 * w

    outer_loss = lambda params, h, data, key: params[0] + 2 * params[1]
    problem = hg.BilevelProblem(inner_loss, outer_loss, jnp.zeros(1), jnp.zeros(1))
    estimator = hg.OneStep(hg.OptaxSolver(optax.sgd(0.3), 5), check=None)
    start = (jnp.asarray(0.5), jnp.asarray(0.0))
    found = hg.diagnose(problem, estimator, start, jnp.asarray(1.0), key=laws.KEY, num_keys=0)
    by_w, by_s = 0.0, 0.0
    for _ in range(5):
        by_w, by_s = by_w + 0.3 * (1 - by_w), 0.9 * by_s + 0.1 * by_w
    np.testing.assert_allclose(found.findings[0].state_share, 2 * by_s / (by_w + 2 * by_s), rtol=1e-10)
    assert "state of layers" in str(found)
