"""Low-rank adaptation of a transformer: adapters train inside of a frozen network, which is stored once."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hypergrad as hg
from experiments.vision.text import Transformer
from hypergrad.testing import laws
from hypergrad.testing.problems import Case

LETTERS, LENGTH, RANK = 3, 5, 1
WIDTH = 64  # so that adapters are small next to the network
INNER = hg.OptaxSolver(optax.adam(0.02, eps_root=1e-8), 4)
PROJECTIONS = ("query_proj", "value_proj")


class LowRank(eqx.Module):
    """A frozen linear layer, and a change of its weights by up · down."""

    frozen: eqx.nn.Linear
    down: jax.Array
    up: jax.Array

    def __init__(self, linear, key):
        self.frozen = linear
        self.down = jax.random.normal(key, (RANK, linear.in_features)) / linear.in_features**0.5
        self.up = 0.1 * jax.random.normal(jax.random.fold_in(key, 1), (linear.out_features, RANK))

    def __call__(self, x, key=None):
        return self.frozen(x) + self.up @ (self.down @ x)


def attentions(model):
    return [layer.attention for layer in model.layers]


def projections(model):
    return [getattr(attention, name) for attention in attentions(model) for name in PROJECTIONS]


def factors(model):
    return [factor for adapter in projections(model) for factor in (adapter.down, adapter.up)]


def adapted(width, layers):
    """Returns a transformer with adapters, and the filter that trains these alone."""
    model = Transformer(LETTERS, LENGTH, width, layers, jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), len(projections(model)))
    model = eqx.tree_at(
        projections, model, [LowRank(old, key) for old, key in zip(projections(model), keys, strict=True)]
    )
    frozen = jax.tree.map(lambda _: False, model)
    return model, eqx.tree_at(factors, frozen, [True] * (2 * len(keys)))


def weights(model):
    return eqx.filter(model, eqx.is_inexact_array)


def letters(seed):
    text = np.random.default_rng(seed).integers(0, LETTERS, (4, LENGTH + 1))
    return text[:, :-1], text[:, 1:]


def outer_loss(model, hparams, data, key):
    x, y = data
    logits, _ = jax.vmap(lambda line: model(line, None))(x)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y))


def inner_loss(model, hparams, data, key):
    """A decay for each adapter, on the change that it makes to the frozen weights."""
    decays = zip(hparams, projections(model), strict=True)
    change = sum(jnp.exp(h) * jnp.sum((adapter.up @ adapter.down) ** 2) for h, adapter in decays)
    return outer_loss(model, hparams, data, key) + change


def case_of(width=8, layers=2):
    model, trainable = adapted(width, layers)
    problem = hg.BilevelProblem(inner_loss, outer_loss, letters(0), letters(1), trainable=trainable)
    return Case(problem, model, [jnp.asarray(-2.0 - 0.1 * n) for n in range(len(projections(model)))])


ESTIMATORS = {"reverse": hg.Reverse(INNER), "forward": hg.Forward(INNER)}


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)
def test_hypergradients_of_adapters_are_differences(estimator):
    laws.finite_differences(estimator, case_of())


@pytest.mark.slow
def test_adapters_alone_move():
    case = case_of()
    after = hg.evaluate(INNER, case.problem, case.params, case.hparams, laws.KEY).params
    for inverse in (False, True):
        part = lambda model: weights(eqx.filter(model, case.problem.trainable, inverse=inverse))  # noqa: B023
        pairs = zip(jax.tree.leaves(part(case.params)), jax.tree.leaves(part(after)), strict=True)
        assert [np.array_equal(*pair) for pair in pairs] == [inverse] * len(jax.tree.leaves(part(after)))


@pytest.mark.slow
def test_steps_keep_adapters_and_nothing_frozen():
    """Memory grows per step by the adapters and their two moments; the frozen weights are many times as large."""
    case = case_of(WIDTH, layers=1)

    def temporary(steps):
        estimator = hg.Reverse(INNER.with_num_steps(steps))
        state = estimator.init(case.problem, case.params, case.hparams)
        arrays, rest = eqx.partition(state, eqx.is_array)

        def step(arrays):
            estimate, _ = estimator.step(case.problem, case.hparams, eqx.combine(arrays, rest), laws.KEY)
            return eqx.filter(estimate, eqx.is_array)

        return jax.jit(step).lower(arrays).compile().memory_analysis().temp_size_in_bytes

    growth = (temporary(48) - temporary(16)) / 32
    adapters, network = (
        sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) for tree in (factors(case.params), weights(case.params))
    )
    assert adapters <= growth < 1.2 * 3 * adapters < network / 8
