"""The guide to models runs as one program, and its models are trained and differentiated as it says."""

import contextlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hypergrad as hg
from hypergrad.testing import assert_close, laws
from hypergrad.testing.problems import Case

from tests.helpers import run_blocks

PAGE = "docs/models.md"
SGD = hg.OptaxSolver(optax.sgd(0.05, 0.9), 3)
HPARAMS = {"log_l2": jnp.array(-3.0)}


@pytest.fixture(scope="module")
def names():
    return run_blocks(PAGE, {})


def problem_of(names, inner_loss, outer_loss, **options):
    return hg.BilevelProblem(names[inner_loss], names[outer_loss], names["train"], names["valid"], **options)


def moved(before, after):
    return [bool(np.any(a != b)) for a, b in zip(*map(jax.tree.leaves, (before, after)), strict=True)]


def arrays(tree):
    return eqx.filter(tree, eqx.is_array)


def test_a_dictionary_has_a_hypergradient(names):
    problem = problem_of(names, "inner_loss", "outer_loss")
    laws.finite_differences(hg.Reverse(names["inner"]), Case(problem, names["weights"], HPARAMS))


def test_a_module_comes_back_whole(names):
    assert type(names["estimate"].params) is eqx.nn.MLP


def test_frozen_layers_stay_and_the_last_moves(names):
    assert moved(arrays(names["model"]), arrays(names["tuned"])) == [False] * 4 + [True] * 2


def test_adapters_alone_are_trained(names):
    before, after = names["attention"], names["adapted"]
    for name in ("query_proj", "value_proj"):
        one, other = getattr(before, name), getattr(after, name)
        assert moved(arrays(one), arrays(other)) == [False, True, True]
    others = lambda model: arrays((model.key_proj, model.output_proj))
    assert not any(moved(others(before), others(after)))


def test_low_rank_adaptation_has_the_hypergradient_of_its_training(names):
    trainable = names["adapters_only"](names["attention"])
    problem = problem_of(names, "penalised_adapted_loss", "adapted_loss", trainable=trainable)
    laws.finite_differences(hg.Reverse(names["inner"]), Case(problem, names["attention"], HPARAMS))


@pytest.mark.parametrize("loss", ["encoded_loss", "moved_loss"])
def test_weights_are_hyperparameters(names, loss):
    """Along a random direction, the hypergradient is a difference."""
    params, hparams = {
        "encoded_loss": (names["head"], names["encoder_weights"]),
        "moved_loss": (jax.tree.map(jnp.zeros_like, names["start"]), names["start"]),
    }[loss]
    problem = problem_of(names, loss, loss)
    value = hg.value_and_hypergrad(problem, hg.Reverse(SGD))
    direction = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(leaf.size), leaf.shape), hparams)
    at = lambda s: float(value(jax.tree.map(lambda h, d: h + s * d, hparams, direction), params, laws.KEY)[0])
    slope = value(hparams, params, laws.KEY)[1]
    found = sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(slope), jax.tree.leaves(direction), strict=True))
    near, far = (at(s) - at(-s) for s in (5e-5, 1e-4))
    np.testing.assert_allclose(found, (8 * near - far) / 6e-4, rtol=1e-6)


@pytest.fixture(scope="module")
def flax_names():
    pytest.importorskip("flax")
    with jax.enable_x64(False):  # flax makes float32 whatever the mode
        return run_blocks(PAGE, run_blocks(PAGE, {}), "python flax")


def by_hand(problem, params, hparams):
    """Returns the outer loss after SGD with momentum, in a loop that uses nothing of this library."""
    weights, averages = params
    velocity = jax.tree.map(jnp.zeros_like, weights)
    for _ in range(SGD.num_steps):
        loss = lambda w, averages=averages: problem.inner_loss((w, averages), hparams, problem.train, None)
        gradient, averages = jax.grad(loss, has_aux=True)(weights)
        velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, gradient)
        weights = jax.tree.map(lambda w, v: w - 0.05 * v, weights, velocity)
    return problem.outer_loss((weights, averages), hparams, problem.valid, None)


@pytest.mark.slow  # CI installs flax for the slow tests alone
@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_flax_modules_and_their_averages_are_trained(flax_names, kind):
    names = flax_names
    params = names["linen_params"] if kind == "linen" else (names["weights"], names["averages"])
    assert any(moved(params[1], names[f"{kind}_found"][1]))
    double = lambda tree: jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), tree)
    losses = names[f"{kind}_inner"], names[f"{kind}_outer"]
    case = Case(hg.BilevelProblem(*losses, double(names["train"]), double(names["valid"])), double(params), HPARAMS)
    expected = jax.jit(jax.value_and_grad(lambda hparams: by_hand(case.problem, case.params, hparams)))(HPARAMS)
    stops = pytest.warns(UserWarning, match="the state of layers, or optimiser .* holds a stop_gradient")
    with stops if kind == "nnx" else contextlib.nullcontext():
        found = laws.answer(hg.Reverse(SGD), case)
    assert_close(found, expected, "gradient")
