"""Frozen parts of a model: not trained, not differentiated, and stored once whatever the number of steps."""

import functools
import itertools
import random
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hypergrad as hg
from hypergrad.testing import assert_close, laws
from hypergrad.testing.problems import Case

KEYS = jax.random.split(jax.random.key(0), 2)
INNER = hg.OptaxSolver(optax.adam(0.05, eps_root=1e-8), 4)


class Head(eqx.Module):
    """A big frozen backbone with a table of integers, and a small head."""

    backbone: eqx.nn.Linear
    order: jax.Array
    head: eqx.nn.Linear

    def __init__(self, width=8):
        self.backbone = eqx.nn.Linear(3, width, key=KEYS[0])
        self.order = jnp.arange(width)[::-1]
        self.head = eqx.nn.Linear(width, "scalar", key=KEYS[1])

    def __call__(self, x):
        return self.head(jnp.tanh(self.backbone(x))[self.order])


def inner_loss(model, hparams, data, key):
    error = jnp.mean((jax.vmap(model)(data["x"]) - data["y"]) ** 2)
    return error + jnp.exp(hparams) * (jnp.sum(model.head.weight**2) + jnp.sum(model.backbone.weight**2))


def outer_loss(model, hparams, data, key):
    return jnp.mean((jax.vmap(model)(data["x"]) - data["y"]) ** 2)


def rows(seed):
    rng = np.random.default_rng(seed)
    return {"x": rng.normal(size=(6, 3)), "y": rng.normal(size=6)}


def problem_of(trainable):
    return hg.BilevelProblem(inner_loss, outer_loss, rows(0), rows(1), trainable=trainable)


def head_only(model):
    frozen = jax.tree.map(lambda _: False, model)
    return eqx.tree_at(lambda m: (m.head.weight, m.head.bias), frozen, (True, True))


ESTIMATORS = {
    "reverse": hg.Reverse(INNER),
    "reverse, float64 kept": hg.Reverse(INNER, storage=jnp.float64, check=None),
    "forward": hg.Forward(INNER),
    "drmad, every knot": hg.DrMAD(INNER, knots=4, check=None),
    "drmad, cubic": hg.DrMAD(INNER, knots=2, cubic=True, check=None),
}


def by_hand(model, hparams):
    """The same training of a head alone, the backbone in the loss."""
    put = lambda head: eqx.tree_at(lambda m: m.head, model, head)
    alone = lambda loss: lambda head, hparams, data, key: loss(put(head), hparams, data, key)
    problem = hg.BilevelProblem(alone(inner_loss), alone(outer_loss), rows(0), rows(1))
    return laws.answer(hg.Reverse(INNER), Case(problem, model.head, hparams))


@pytest.mark.variants(quick=["forward"], slow=["reverse", "drmad, cubic"])
@pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)
def test_freezing_is_leaving_out(estimator):
    model, hparams = Head(), jnp.asarray(-3.0)
    found = laws.answer(estimator, Case(problem_of(head_only(model)), model, hparams))
    assert_close(found, by_hand(model, hparams), "gradient")


@pytest.mark.slow
def test_frozen_arrays_come_back_as_they_were():
    model = Head()
    problem = problem_of(head_only(model))
    search = hg.GradientSearch(hg.Implicit(INNER, hg.CG(3), warm_start=True), optax.adam(0.1))
    state, _ = hg.run(search, problem, search.init(problem, model, jnp.asarray(-3.0)), key=laws.KEY, budget=20)
    for found in (state.best.params, state.model):
        assert isinstance(found, Head)
        np.testing.assert_array_equal(found.backbone.weight, model.backbone.weight)
        np.testing.assert_array_equal(found.order, model.order)
        assert np.any(found.head.weight != model.head.weight)


FORMS = {
    "a tree": head_only(Head()),
    "a prefix": eqx.tree_at(lambda m: (m.backbone, m.order, m.head), Head(), (False, False, True)),
}


@pytest.mark.parametrize("trainable", FORMS.values(), ids=FORMS)
def test_filters_take_the_forms_that_equinox_takes(trainable):
    model = Head()
    state = INNER.init(problem_of(trainable), model, jnp.asarray(-3.0))
    assert state.partitioned.arrays.backbone.weight is None
    assert jax.tree.structure(state.partitioned.arrays.head) == jax.tree.structure(eqx.filter(model.head, eqx.is_array))


def test_a_function_decides_by_the_leaf():
    state = INNER.init(problem_of(lambda leaf: leaf.ndim == 2), Head(), jnp.asarray(-3.0))
    assert [leaf.ndim for leaf in jax.tree.leaves(state.partitioned.arrays)] == [2, 2]


@pytest.mark.parametrize(
    ("trainable", "error", "message"),
    [
        (lambda leaf: False, ValueError, "trainable leaves no floating-point array"),
        ("head", TypeError, "trainable must hold truth values"),
        ((True, False), ValueError, "trainable has not the form of params"),
    ],
)
def test_filters_that_cannot_be_are_refused_by_name(trainable, error, message):
    with pytest.raises(error, match=message):
        hg.Reverse(INNER).init(problem_of(trainable), Head(), jnp.asarray(-3.0))


@pytest.mark.slow
def test_a_backbone_is_not_stored_per_step():
    """Memory grows with the steps by what is trained and its moments, and a frozen array adds nothing to that."""

    def temporary(steps, width):
        model = Head(width)
        estimator = hg.Reverse(INNER.with_num_steps(steps))
        problem, hparams = problem_of(head_only(model)), jnp.asarray(-3.0)
        state = estimator.init(problem, model, hparams)
        arrays, rest = eqx.partition(state, eqx.is_array)

        def step(arrays):
            estimate, _ = estimator.step(problem, hparams, eqx.combine(arrays, rest), laws.KEY)
            return eqx.filter(estimate, eqx.is_array)

        return jax.jit(step).lower(arrays).compile().memory_analysis().temp_size_in_bytes

    width = 512
    trained = 8 * (width + 1)  # bytes of the head, in float64; the backbone has three times as many
    growth = (temporary(64, width) - temporary(16, width)) / 48
    assert trained <= growth < 1.2 * 3 * trained  # weights and two moments


def linear(params, hparams, data, key):
    error = data["x"] @ params["first"] + params.get("scale", 1.0) * (data["x"] @ params["second"]) - data["y"]
    return jnp.mean(error**2) + hparams * jnp.sum(params["first"] ** 2)


def started(params, **options):
    return INNER.init(hg.BilevelProblem(linear, linear, rows(0), rows(1), **options), params, jnp.asarray(0.1))


def test_one_array_in_two_places_is_trained_apart_with_a_warning():
    w = jnp.arange(3.0)
    with pytest.warns(UserWarning, match=r"params\['first'\] and params\['second'\] are one array") as caught:
        started({"first": w, "second": w})
    assert len(caught) == 1
    for apart in ({"first": w, "second": jnp.copy(w)}, {"first": (zeros := jnp.zeros(3)), "second": zeros}):
        started(apart)
    started({"first": w, "second": w}, trainable={"first": True, "second": False})


@pytest.mark.parametrize("how", ["evaluate", "value_and_hypergrad"])
def test_calls_that_make_their_own_state_check_values_too(how):
    problem, hparams = hg.BilevelProblem(linear, linear, rows(0), rows(1)), jnp.asarray(0.1)

    def call(params):
        if how == "evaluate":
            return hg.evaluate(INNER, problem, params, hparams, KEYS[0])
        return hg.value_and_hypergrad(problem, hg.OneStep(INNER))(hparams, params, KEYS[0])

    w = jnp.arange(3.0)
    with pytest.warns(UserWarning, match="are one array"):
        call({"first": w, "second": w})
    with pytest.raises(ValueError, match=r"params\['second'\] holds values that are NaN"):
        call({"first": w, "second": w * jnp.nan})


def test_a_number_among_the_arrays_is_a_constant_with_a_warning():
    first, second = jnp.arange(3.0), jnp.ones(3)
    with pytest.warns(UserWarning, match=r"params\['scale'\] is a number of Python's.*jnp.asarray"):
        started({"first": first, "second": second, "scale": 2.0})
    for array in (jnp.asarray(2.0), np.float64(2.0)):
        state = started({"first": first, "second": second, "scale": array})
        assert state.partitioned.arrays["scale"] is not None
    assert eqx.nn.LayerNorm(3).eps > 0  # an option of a layer, of which there is no warning
    frozen = {"first": first, "second": second, "norm": eqx.nn.LayerNorm(3)}
    started(frozen)


def drawing(draw):
    """A loss with noise that is not JAX's."""
    return lambda params, hparams, data, key: linear(params, hparams, data, key) + jnp.sum(params["first"] * draw())


DRAWS = {"numpy.random": lambda: np.random.normal(size=3), "random": random.random}


@pytest.mark.parametrize("module", DRAWS)
def test_a_loss_that_draws_while_it_is_traced_is_named(module):
    first, noisy = {"first": jnp.arange(3.0), "second": jnp.ones(3)}, drawing(DRAWS[module])
    for name, losses in (("inner_loss", (noisy, linear)), ("outer_loss", (linear, noisy))):
        problem = hg.BilevelProblem(*losses, rows(0), rows(1))
        with pytest.warns(UserWarning, match=f"{name} draws from {module} while JAX traces it"):
            INNER.init(problem, first, jnp.asarray(0.1))
    fixed = drawing(lambda: np.random.default_rng(0).normal(size=3))
    INNER.init(hg.BilevelProblem(fixed, fixed, rows(0), rows(1)), first, jnp.asarray(0.1))


CHANGING = {
    "generator": functools.partial(np.random.default_rng(0).normal, size=3),
    "counter": functools.partial(next, itertools.count()),
    "clock": time.perf_counter,
}


@pytest.mark.parametrize("source", CHANGING)
@pytest.mark.parametrize("data", [rows(0), hg.Batches(rows(0), 2, order="all")], ids=["whole", "in chunks"])
def test_a_loss_that_is_another_function_in_the_next_trace_is_named(source, data):
    """Value and derivative would be those of different functions."""
    first, changing = {"first": jnp.arange(3.0), "second": jnp.ones(3)}, drawing(CHANGING[source])
    for name, losses in (("inner_loss", (changing, linear)), ("outer_loss", (linear, changing))):
        with pytest.warns(UserWarning, match=f"{name} is another function each time that JAX traces it"):
            INNER.init(hg.BilevelProblem(*losses, data, data), first, jnp.asarray(0.1))


@pytest.mark.parametrize("draw", [*DRAWS.values(), *CHANGING.values()], ids=[*DRAWS, *CHANGING])
def test_a_changing_loss_that_its_user_has_compiled_is_named(draw):
    first, changing = {"first": jnp.arange(3.0), "second": jnp.ones(3)}, jax.jit(drawing(draw))
    changing(first, jnp.asarray(0.1), rows(0), KEYS[0])
    for name, losses in (("inner_loss", (changing, linear)), ("outer_loss", (linear, changing))):
        with pytest.warns(UserWarning, match=f"{name} .* JAX traces it"):
            INNER.init(hg.BilevelProblem(*losses, rows(0), rows(1)), first, jnp.asarray(0.1))


@pytest.mark.parametrize("compiled", [False, True])
def test_a_changing_holdout_is_named(compiled):
    first, draw = {"first": jnp.arange(3.0), "second": jnp.ones(3)}, DRAWS["numpy.random"]
    holdout = lambda model: jnp.sum(model["first"] * draw())
    search = hg.GradientSearch(hg.Reverse(INNER), optax.sgd(0.1))
    problem = hg.BilevelProblem(linear, linear, rows(0), rows(1))
    state = search.init(problem, first, jnp.asarray(0.1))
    with pytest.warns(UserWarning, match="holdout draws from numpy.random"):
        hg.run(search, problem, state, key=KEYS[0], budget=2, holdout=jax.jit(holdout) if compiled else holdout)


@pytest.mark.parametrize("draw", [DRAWS["random"], *list(CHANGING.values())[1:]], ids=["random", "counter", "clock"])
def test_a_changing_optimiser_is_named(draw):
    first, problem = (
        {"first": jnp.arange(3.0), "second": jnp.ones(3)},
        hg.BilevelProblem(linear, linear, rows(0), rows(1)),
    )
    noisy = optax.chain(optax.sgd(0.1), optax.stateless(lambda updates, _: jax.tree.map(lambda u: u * draw(), updates)))
    for optimiser in (noisy, lambda hparams: optax.sgd(hparams * draw())):
        with pytest.warns(UserWarning, match="optimiser .* JAX traces it"):
            hg.OptaxSolver(optimiser, 2).init(problem, first, jnp.asarray(0.1))


def test_a_loss_that_closes_over_arrays_and_keys_is_no_changing_one():
    first, key, table = {"first": jnp.arange(3.0), "second": jnp.ones(3)}, jax.random.key(3), jnp.arange(3.0) / 7
    closed = drawing(lambda: table + np.array([1.0, np.nan, 2.0])[[0, 2, 0]] + jax.random.normal(key, 3))
    INNER.init(hg.BilevelProblem(closed, closed, rows(0), rows(1)), first, jnp.asarray(0.1))


@pytest.mark.parametrize("draw", [*DRAWS.values(), *CHANGING.values()], ids=[*DRAWS, *CHANGING])
def test_a_prior_that_does_not_draw_by_its_key_is_named(draw):
    """All trials of one compiled program would be at the same hyperparameters."""
    first = {"first": jnp.arange(3.0), "second": jnp.ones(3)}
    search = hg.RandomSearch(INNER, lambda key: jnp.asarray(np.sum(draw()), float))
    with pytest.warns(UserWarning, match="prior .* JAX traces it"):
        search.init(hg.BilevelProblem(linear, linear, rows(0), rows(1)), first, jnp.asarray(0.1))
