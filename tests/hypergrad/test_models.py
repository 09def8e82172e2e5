"""Any Equinox model goes in whole, and hyperparameters of any form."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hypergrad as hg
from hypergrad.testing import assert_close, laws
from hypergrad.testing.problems import Case, ridge

KEYS = jax.random.split(jax.random.key(0), 4)


class Convolutional(eqx.Module):
    layers: eqx.nn.Sequential

    def __init__(self):
        pooled = [eqx.nn.AvgPool2d(2, 2), eqx.nn.Lambda(jnp.ravel), eqx.nn.Linear(8, 1, key=KEYS[1])]
        self.layers = eqx.nn.Sequential([eqx.nn.Conv2d(1, 2, 3, key=KEYS[0]), eqx.nn.Lambda(jnp.tanh), *pooled])

    def __call__(self, x, key):
        return self.layers(x.reshape(1, 6, 6))[0]


class Recurrent(eqx.Module):
    cell: eqx.nn.GRUCell | eqx.nn.LSTMCell
    out: eqx.nn.Linear

    def __init__(self, kind):
        self.cell, self.out = kind(6, 3, key=KEYS[0]), eqx.nn.Linear(3, "scalar", key=KEYS[1])

    def __call__(self, x, key):
        zeros = jnp.zeros(3, x.dtype)
        start = (zeros, zeros) if isinstance(self.cell, eqx.nn.LSTMCell) else zeros
        end, _ = jax.lax.scan(lambda state, row: (self.cell(row, state), None), start, x.reshape(6, 6))
        return self.out(jax.tree.leaves(end)[0])


class Attentive(eqx.Module):
    attention: eqx.nn.MultiheadAttention
    norm: eqx.nn.LayerNorm

    def __init__(self):
        self.attention = eqx.nn.MultiheadAttention(2, 6, dropout_p=0.2, key=KEYS[0])
        self.norm = eqx.nn.LayerNorm(6)

    def __call__(self, x, key):
        x = x.reshape(6, 6)
        return jnp.sum(jax.vmap(self.norm)(x + self.attention(x, x, x, key=key))[0])


class Dropping(eqx.Module):
    first: eqx.nn.Linear
    dropout: eqx.nn.Dropout
    last: eqx.nn.Linear

    def __init__(self):
        self.first, self.last = eqx.nn.Linear(36, 4, key=KEYS[0]), eqx.nn.Linear(4, "scalar", key=KEYS[1])
        self.dropout = eqx.nn.Dropout(0.3)

    def __call__(self, x, key):
        return self.last(self.dropout(jnp.tanh(self.first(x)), key=key))


MODELS = {
    "CNN": Convolutional,
    "GRU": lambda: Recurrent(eqx.nn.GRUCell),
    "LSTM": lambda: Recurrent(eqx.nn.LSTMCell),
    "attention": Attentive,
    "dropout": Dropping,
}


def inner_loss(model, hparams, data, key):
    """Squared error, with one weight per example and one penalty per leaf."""
    keys = jax.random.split(key, len(data["y"]))
    errors = (jax.vmap(model)(data["x"], keys) - data["y"]) ** 2
    weights = jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))
    penalty = sum(jnp.exp(h) * jnp.sum(w**2) for h, w in zip(hparams["per leaf"], weights, strict=True))
    return jnp.mean(jax.nn.sigmoid(hparams["per example"]) * errors) + penalty


def outer_loss(model, hparams, data, key):
    keys = jax.random.split(key, len(data["y"]))
    return jnp.mean((jax.vmap(eqx.nn.inference_mode(model))(data["x"], keys) - data["y"]) ** 2)


def case_of(model):
    rng = np.random.default_rng(0)
    rows = lambda: {"x": rng.normal(size=(4, 36)), "y": rng.normal(size=4)}
    num_leaves = len(jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array)))
    hparams = {"per leaf": [jnp.asarray(-4.0 - i / 10) for i in range(num_leaves)], "per example": jnp.zeros(4)}
    return Case(hg.BilevelProblem(inner_loss, outer_loss, rows(), rows()), model, hparams)


@pytest.mark.variants(quick=["CNN"], slow=["dropout", "attention", "LSTM"])
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_hypergradients_of_any_model(make):
    case, inner = case_of(make()), hg.OptaxSolver(optax.adam(0.03), 3)
    laws.finite_differences(hg.Reverse(inner), case)


@pytest.mark.slow
def test_a_search_returns_a_model_of_the_same_kind():
    case, inner = case_of(Convolutional()), hg.OptaxSolver(optax.adam(0.03), 3)
    search = hg.GradientSearch(hg.Greedy(inner, check=None), optax.adam(0.05))
    state = search.init(case.problem, case.params, case.hparams)
    state, history = hg.run(search, case.problem, state, key=laws.KEY, budget=9)
    assert len(history.value) == 3 and np.all(history.stats.status == hg.Status.OK)
    assert isinstance(state.best.params, Convolutional)


def moved_inner(delta, start, data, key):
    """The loss at start + delta: training delta from 0 is training the weights from `start`."""
    return jnp.mean((data["x"] @ (start + delta) - data["y"]) ** 2)


@pytest.mark.parametrize("estimator", [hg.Reverse, hg.Forward])
def test_initial_weights_are_learned_as_in_maml(estimator):
    case, steps, rate = ridge(), 5, 0.1
    problem = hg.BilevelProblem(moved_inner, moved_inner, case.problem.train, case.problem.valid)

    def after_training(w):
        for _ in range(steps):
            w = w - rate * jax.grad(moved_inner)(w, 0.0, case.problem.train, laws.KEY)
        return moved_inner(w, 0.0, case.problem.valid, laws.KEY)

    inner = hg.OptaxSolver(optax.sgd(rate), steps)
    found = hg.value_and_hypergrad(problem, estimator(inner))(case.params, jnp.zeros(3), laws.KEY)
    assert_close(found, jax.value_and_grad(after_training)(case.params), "gradient")
