"""The momentum among the hyperparameters of `tune`: it is found whatever its form, and its memory is bounded."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.nn import sigmoid
from scipy.special import logit

import hypergrad as hg
from hypergrad.testing import laws
from hypergrad.tuning.momentum import bounds, retention

WEIGHTS = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
RATE, DECAY = jnp.asarray(-5.0), jnp.asarray(-3.0)
BY_LAYER = {"w": "w", "b": "b"}


def layers(h):
    adam = lambda place: optax.adam(jnp.exp(h["rate"]), b1=sigmoid(h["m"][place]))
    return optax.multi_transform({"w": adam(0), "b": adam(1)}, BY_LAYER)


def falling(h):
    """A rate of its own for each update, which falls by a half from one to the next."""
    return optax.sgd(lambda t: jnp.exp(h["rate"] + h["decay"]) * 0.5**t, sigmoid(h["m"]))


def of_adam(b2):
    """The b1 at which b1 / √b2 = 0.8."""
    return 0.8 * b2**0.5


# The optimiser, the momentum at the start, where r = 0.8 as a hyperparameter, and on which side.
FOUND = {
    "momentum": (lambda h: optax.sgd(jnp.exp(h["rate"]), sigmoid(h["m"])), 4.6, logit(0.8), "upper"),
    "as it is": (lambda h: optax.sgd(jnp.exp(h["rate"]), h["m"]), 0.95, 0.8, "upper"),
    "Nesterov": (lambda h: optax.sgd(jnp.exp(h["rate"]), sigmoid(h["m"]), nesterov=True), 0.0, logit(0.8), "upper"),
    "its distance to 1": (
        lambda h: optax.adamw(jnp.exp(h["rate"]), b1=1 - jnp.exp(h["m"]), weight_decay=jnp.exp(h["decay"])),
        -2.3,
        np.log(1 - of_adam(0.999)),
        "lower",
    ),
    "Adam": (lambda h: optax.adam(jnp.exp(h["rate"]), sigmoid(h["m"]), 0.9), 2.2, logit(of_adam(0.9)), "upper"),
    "one per layer": (layers, [2.2, 0.0], logit(of_adam(0.999)), "upper"),
    "a falling rate": (falling, 2.2, logit(0.8), "upper"),
}


def found(optimiser, hparams, memory=5, in_loss=(False, False, False)):
    scale = jax.tree.map(jnp.ones_like, hparams)
    return bounds(hg.OptaxSolver(optimiser, 10), WEIGHTS, hparams, scale, in_loss, memory)


@pytest.mark.parametrize("name", FOUND)
def test_the_bound_is_where_an_update_repeats_four_fifths_of_the_last(name):
    """r is the momentum, or b1 / √b2 of Adam: rates, decays and schedules do not enter, and are left alone."""
    optimiser, start, expected, side = FOUND[name]
    lower, upper, paths = found(optimiser, {"rate": RATE, "decay": DECAY, "m": jnp.asarray(start)})
    assert paths == ["hparams['m']"]
    bound, other = (upper, lower) if side == "upper" else (lower, upper)
    np.testing.assert_allclose(bound["m"], expected * np.ones_like(start), atol=1e-4)
    assert np.all(np.isinf(other["m"]))
    assert np.isinf([side[name] for side in (lower, upper) for name in ("rate", "decay")]).all()


@pytest.mark.parametrize(("memory", "momentum"), [(2, 0.5), (5, 0.8), (50, 0.98)])
def test_a_memory_of_n_updates_is_a_momentum_of_one_minus_its_inverse(memory, momentum):
    heavy_ball = lambda h: optax.sgd(0.1, h["m"])
    hparams = {"decay": DECAY, "m": jnp.asarray(0.9), "rate": RATE}
    assert float(found(heavy_ball, hparams, memory)[1]["m"]) == pytest.approx(momentum, abs=1e-5)
    assert float(retention(heavy_ball, {"m": momentum}, WEIGHTS)) == pytest.approx(momentum)


@pytest.mark.parametrize(
    "optimiser",
    [
        lambda h: optax.sgd(jnp.exp(h["rate"]), None),
        lambda h: optax.adamw(jnp.exp(h["rate"]), 0.9, weight_decay=jnp.exp(h["decay"])),
        lambda h: optax.lion(jnp.exp(h["rate"]), sigmoid(h["m"])),
        optax.adam(0.1),
    ],
    ids=["descent", "a fixed momentum", "steps of one size", "a fixed optimiser"],
)
def test_without_a_momentum_nothing_is_bounded(optimiser):
    assert found(optimiser, {"rate": RATE, "decay": DECAY, "m": jnp.asarray(2.2)})[2] == []


def test_what_enters_a_loss_or_is_held_is_no_momentum():
    hparams = {"rate": RATE, "decay": DECAY, "m": jnp.asarray(0.9)}
    heavy_ball = lambda h: optax.sgd(0.1, h["m"])
    assert found(heavy_ball, hparams, in_loss=(False, True, False))[2] == []  # leaves are sorted: decay, m, rate
    held = {"rate": 1.0, "decay": 1.0, "m": 0.0}
    inner = hg.OptaxSolver(heavy_ball, 10)
    assert bounds(inner, WEIGHTS, hparams, jax.tree.map(jnp.asarray, held), [False] * 3, 5)[2] == []


def quadratic():
    a = np.geomspace(0.03, 1.0, 6)
    noisy = lambda w, h, data, key: jnp.sum(data * (w - jax.random.normal(key, w.shape)) ** 2) / 2
    return hg.BilevelProblem(noisy, lambda w, h, data, key: jnp.sum(data * w**2) / 2, a, a), jnp.full(6, 5.0)


def tune(**options):
    problem, params = quadratic()
    solver = hg.OptaxSolver(lambda h: optax.sgd(jnp.exp(h["rate"]), sigmoid(h["m"])), 400)
    start = {"rate": jnp.asarray(-4.0), "m": jnp.asarray(4.6)}
    return hg.tune(solver, problem, params, start, key=laws.KEY, starts=[], **options)


@pytest.mark.slow
def test_tune_keeps_a_momentum_at_its_bound_or_below():
    """The start, 0.99, trains until the first move. Free of the bound it stays: the hypergradient asks for more."""
    bounded, free = tune(), tune(memory=None)
    momentum = lambda tuned: np.asarray(sigmoid(tuned.history.hparams["m"]))
    assert momentum(bounded)[0] == momentum(free)[0] > 0.98
    assert np.all(momentum(bounded)[1:] <= 0.8 + 1e-6) and np.all(momentum(free) > 0.9)
    assert "hparams['m'] is a momentum" in str(bounded) and "momentum" not in str(free)


@pytest.mark.slow
def test_the_own_projection_has_the_last_word():
    tuned = tune(projection=lambda h: h | {"m": jnp.full_like(h["m"], 2.0)})
    np.testing.assert_allclose(tuned.history.hparams["m"][1:], 2.0)


def test_a_memory_of_one_update_is_refused():
    with pytest.raises(ValueError, match="memory must be an integer of at least 2"):
        tune(memory=1)
