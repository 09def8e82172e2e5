"""Functions that read numbers from outside themselves, which compiled programs hold as they were."""

import functools
import types

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hypergrad as hg
from hypergrad.ground.outside import read_outside

KEY = jax.random.key(0)
ROWS = np.ones((4, 2)), np.arange(4.0)
SCALE = 1.0
HELD = np.ones(2)
OPTIONS = types.SimpleNamespace(scale=1.0)
TABLE = jnp.ones(2)
LISTED = [1.0]


def mse(w, h, data, key):
    return jnp.mean((data[0] @ w - data[1]) ** 2)


def helper(w):
    return SCALE * jnp.sum(w**2)


def penalised(penalty):
    return lambda w, h, data, key: mse(w, h, data, key) + jnp.exp(h) * penalty(w)


def set_global(monkeypatch, name, value):
    monkeypatch.setitem(globals(), name, value)


CHANGES = {
    "a global of a helper": (helper, lambda patch: set_global(patch, "SCALE", 3.0)),
    "a global inside": (lambda w: sum(SCALE * w[i] ** 2 for i in range(2)), lambda p: set_global(p, "SCALE", 3.0)),
    "an array": (lambda w: jnp.sum(HELD * w**2), lambda patch: HELD.fill(3.0)),
    "another array of JAX": (lambda w: jnp.sum(TABLE * w**2), lambda p: set_global(p, "TABLE", 3 * jnp.ones(2))),
    "a list": (lambda w: LISTED[0] * jnp.sum(w**2), lambda patch: set_global(patch, "LISTED", [3.0])),
    "a field": (lambda w: OPTIONS.scale * jnp.sum(w**2), lambda patch: patch.setattr(OPTIONS, "scale", 3.0)),
    "compiled": (jax.jit(lambda w: OPTIONS.scale * jnp.sum(w**2)), lambda p: p.setattr(OPTIONS, "scale", 3.0)),
    "bound": (functools.partial(lambda options, w: options.scale * jnp.sum(w**2), OPTIONS), None),
}
CHANGES["bound"] = CHANGES["bound"][0], CHANGES["a field"][1]


@pytest.fixture(autouse=True)
def held():
    HELD.fill(1.0)


@pytest.mark.variants(quick=["a field", "a global of a helper"], slow=["* inside", "*array*", "a list", "bound"])
@pytest.mark.parametrize("kind", [kind for kind in CHANGES if kind != "compiled"])
def test_a_problem_made_after_a_change_is_another_one(monkeypatch, kind):
    """A cell of a notebook is run again, and those that define its losses are not."""
    penalty, change = CHANGES[kind]
    loss, w, h = penalised(penalty), jnp.array([0.3, -0.2]), jnp.asarray(-1.0)
    estimator = hg.Reverse(hg.OptaxSolver(optax.sgd(0.05), 2))
    answer = lambda loss: hg.value_and_hypergrad(hg.BilevelProblem(loss, mse, ROWS, ROWS), estimator)(h, w, KEY)
    before = answer(loss)
    change(monkeypatch)
    expected = answer(penalised(lambda w: 3 * jnp.sum(w**2)))
    np.testing.assert_allclose(answer(loss), expected, rtol=1e-12)
    assert abs(before[1] - expected[1]) > 0.01


def test_an_inner_solver_made_after_a_change_is_another_one(monkeypatch):
    optimiser = lambda hparams: optax.sgd(OPTIONS.scale * jnp.exp(hparams))
    problem = hg.BilevelProblem(mse, mse, ROWS, ROWS)
    value = lambda: hg.evaluate(hg.OptaxSolver(optimiser, 2), problem, jnp.zeros(2), jnp.asarray(-3.0), KEY).value
    before = value()
    monkeypatch.setattr(OPTIONS, "scale", 3.0)
    fast = hg.OptaxSolver(optax.sgd(3 * np.exp(-3.0)), 2)
    expected = hg.evaluate(fast, problem, jnp.zeros(2), jnp.asarray(-3.0), KEY).value
    np.testing.assert_allclose(value(), expected, rtol=1e-12)
    assert abs(before - expected) > 0.01


@pytest.mark.parametrize("kind", CHANGES)
def test_a_change_since_the_problem_was_made_is_named(monkeypatch, kind):
    penalty, change = CHANGES[kind]
    problem = hg.BilevelProblem(penalised(penalty), mse, ROWS, ROWS)
    inner = hg.OptaxSolver(optax.sgd(0.05), 2)
    inner.init(problem, jnp.zeros(2), jnp.asarray(-1.0))
    change(monkeypatch)
    with pytest.warns(
        UserWarning, match="problem has losses that read a number or array from outside which has changed"
    ):
        inner.init(problem, jnp.zeros(2), jnp.asarray(-1.0))


def test_other_losses_in_a_problem_are_no_change():
    problem, scale = hg.BilevelProblem(penalised(helper), mse, ROWS, ROWS), 7.0
    other = eqx.tree_at(lambda p: p.inner_loss, problem, penalised(lambda w: scale * jnp.sum(w)))
    hg.OptaxSolver(optax.sgd(0.05), 2).init(other, jnp.zeros(2), jnp.asarray(-1.0))


def test_notes_of_calls_are_no_change():
    calls, count, numbers = [], 0, {"calls": 0}

    def noted(w):
        nonlocal count
        numbers["calls"] += 1
        calls.append(count)
        count += 1
        return jnp.sum(w**2)

    before = read_outside(noted)
    noted(jnp.ones(2))
    assert read_outside(noted) == before and calls == [0]


class Trainer:
    """A user's class, of which the losses read one field."""

    def __init__(self):
        self.epoch, self.calls, self.scale = 0, 0, 1.0

    def inner_loss(self, w, h, data, key):
        self.calls += 1
        return mse(w, h, data, key) + jnp.exp(h) * self.penalty(w)

    def penalty(self, w):
        return SCALE * self.scale * jnp.sum(w**2)

    def problem(self):
        return hg.BilevelProblem(self.inner_loss, mse, ROWS, ROWS)


def test_fields_that_no_loss_reads_are_no_change(monkeypatch):
    """Steps are compiled once for all problems of a trainer that counts its epochs and calls."""
    trainer = Trainer()
    before = trainer.problem().outside
    trainer.epoch, trainer.calls = 1, 1
    assert trainer.problem().outside == before
    trainer.scale = 3.0
    assert trainer.problem().outside != before
    trainer.scale = 1.0
    set_global(monkeypatch, "SCALE", 3.0)
    assert trainer.problem().outside != before


class Penalty(eqx.Module):
    """A loss that is a module, with an array that is an argument of compiled programs, and a method of it."""

    scale: jax.Array

    def __call__(self, w, h, data, key):
        return mse(w, h, data, key) + jnp.exp(h) * SCALE * self.scale * jnp.sum(w**2)

    def method(self, w, h, data, key):
        return self(w, h, data, key)


@pytest.mark.parametrize("loss", [lambda module: module, lambda module: module.method], ids=["module", "method"])
def test_fields_of_modules_are_arguments(monkeypatch, loss):
    problem = lambda scale: hg.BilevelProblem(loss(Penalty(scale)), mse, ROWS, ROWS)
    value = lambda problem: (
        hg.evaluate(hg.OptaxSolver(optax.sgd(0.05), 2), problem, jnp.ones(2), jnp.asarray(-1.0), KEY).value
    )
    scales = jnp.array([1.0, 3.0])
    together = eqx.filter_vmap(value)(eqx.filter_vmap(problem)(scales))
    np.testing.assert_allclose(together, [value(problem(scale)) for scale in scales], rtol=1e-12)
    before = problem(scales[0]).outside
    assert problem(scales[1]).outside == before
    set_global(monkeypatch, "SCALE", 3.0)
    assert problem(scales[0]).outside != before


def test_functions_in_modules_are_read(monkeypatch):
    parts = hg.GaussNewton(lambda w, h, data, key: w, mse, lambda w, h, data, key: helper(w))
    for held in (parts, Penalty(parts), functools.partial(parts, 1)):
        before = read_outside(held)
        set_global(monkeypatch, "SCALE", SCALE + 1)
        assert read_outside(held) != before


INNER, STILL = hg.OptaxSolver(optax.sgd(0.05), 2), optax.sgd(3.0)
READERS = {
    "holdout": ({"holdout": helper}, lambda: hg.GradientSearch(hg.Reverse(INNER), STILL)),
    "kept": ({"keep": lambda record: SCALE * record.value}, lambda: hg.GradientSearch(hg.Reverse(INNER), STILL)),
    "outer": ({}, lambda: hg.GradientSearch(hg.Reverse(INNER), SCALED)),
    "preconditioner": ({}, lambda: hg.GradientSearch(hg.Implicit(INNER, hg.CG(1), preconditioner=diagonal), STILL)),
    "prior": ({}, lambda: hg.RandomSearch(INNER, scaled_normal)),
    "projection": ({}, lambda: hg.GradientSearch(hg.Reverse(INNER), STILL, projection=clipped)),
}
SCALED = optax.sgd(lambda count: 3 * SCALE)


def clipped(hparams):
    return jnp.clip(hparams, None, -1 + SCALE / 100)


def scaled_normal(key):
    return SCALE * jax.random.normal(key)


def diagonal(hparams):
    return jnp.array([1.0, SCALE])


@pytest.mark.variants(quick=["prior"], slow=["holdout", "kept", "outer", "preconditioner", "projection"])
@pytest.mark.parametrize("kind", READERS)
def test_a_search_made_after_a_change_is_another_one(monkeypatch, kind):
    options, make = READERS[kind]
    problem = hg.BilevelProblem(penalised(lambda w: jnp.sum(w**2)), mse, ROWS, ROWS)

    def answer():
        search = make()
        start = search.init(problem, jnp.ones(2), jnp.asarray(-1.0))
        state, history = hg.run(search, problem, start, key=KEY, budget=4, chunk=2, **options)
        return jax.tree.leaves((state.hparams, state.best.value, history.records))

    before = answer()
    set_global(monkeypatch, "SCALE", 3.0)
    found = answer()
    jax.clear_caches()
    expected = answer()
    assert all(map(np.array_equal, found, expected)) and not all(map(np.array_equal, found, before))


def test_what_installed_packages_read_is_no_change(monkeypatch):
    """Functions of packages are many, and read constants; those that the user gave them count."""
    assert read_outside(optax.global_norm) == read_outside(optax.sgd) == read_outside()
    schedule = optax.inject_hyperparams(optax.sgd)(learning_rate=lambda count: OPTIONS.scale * 0.1)
    before = read_outside(schedule.update)
    monkeypatch.setattr(OPTIONS, "scale", 3.0)
    assert read_outside(schedule.update) != before


def test_what_is_equal_is_no_change():
    make = lambda value: lambda w: jnp.sum(value * w)
    assert read_outside(make(np.ones(3))) == read_outside(make(np.ones(3))) != read_outside(make(np.zeros(3)))
    assert len({read_outside(make(np.zeros(shape, kind))) for shape in (4, (2, 2)) for kind in ("f4", "i4")}) == 4
    assert read_outside(max, jnp.sum, eval("lambda w: w + missing"), KEY) == read_outside(
        max, jnp.sum, eval("lambda w: w + missing"), KEY
    )
