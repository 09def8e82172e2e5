"""Networks whose size is data are the smaller ones."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hypergrad as hg

MAKE = {
    "dense": lambda **options: hg.trials.MaskedMLP(16, 2, 5, 3, **options),
    "convolutional": lambda **options: hg.trials.MaskedCNN((4, 2, 2), 2, 5, 3, **options),
}


@eqx.filter_jit
def made(make, widths, depth):
    return make(widths=widths, depth=depth, key=jax.random.key(0), activation=jnp.cosh)  # cosh(0) is not 0


@eqx.filter_jit
@eqx.filter_value_and_grad
def penalised(net, x):
    weights = jax.tree.leaves(eqx.filter(net, eqx.is_inexact_array))
    return jnp.sum(net(x) ** 2) + sum(jnp.sum(w**2) for w in weights)


@pytest.mark.variants(
    quick=["widths2-*-dense"], slow=["widths2-*-convolutional", "widths1-*", "widths0-3-convolutional"]
)
@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
@pytest.mark.parametrize(("widths", "depth"), [((5, 3, 2), 3), ((1, 5, 5), 1), ((2, 4, 5), 2)])
def test_a_masked_network_is_the_smaller_one(make, widths, depth):
    net = made(make, np.array(widths), np.array(depth))
    small, x = net.narrow(), np.linspace(-1.0, 1.0, 16)
    count = lambda tree: sum(np.count_nonzero(w) for w in jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array)))
    (value, ours), (expected, theirs) = penalised(net, x), penalised(small, x)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    assert int(net.num_params) == count(small) == count(net) == count(theirs) == count(ours)
    squares = [sum((g**2).sum() for g in jax.tree.leaves(jax.tree.map(np.asarray, grad))) for grad in (ours, theirs)]
    np.testing.assert_allclose(squares[0], squares[1], rtol=1e-12)
    moved = eqx.apply_updates(net, ours)  # inactive weights stay zero
    assert count(moved) == count(net) and not np.any(moved.hidden[depth - 1 :])


def test_initial_weights_are_those_of_the_smaller_network():
    net = made(MAKE["convolutional"], np.array((4, 2, 1)), np.array(2))
    inputs = np.array([9 * 2, 9 * 4, 2 * 2])
    parts = [net.first[:, :4], net.hidden[0].reshape(9, 5, 5)[:, :4, :2], net.last[..., :2]]
    for part, fan in zip(parts, inputs, strict=True):
        assert 0.8 < np.abs(part).max() * np.sqrt(fan) < 1 and np.all(part != 0)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("max_width must be", lambda: hg.trials.MaskedMLP(2, 1, 0, 1, widths=1, depth=1, key=jax.random.key(0))),
        ("max_depth must be", lambda: hg.trials.MaskedCNN((4, 4), 1, 3, 0, widths=1, depth=1, key=jax.random.key(0))),
        ("both sides even", lambda: hg.trials.MaskedCNN((5, 4), 1, 3, 1, widths=1, depth=1, key=jax.random.key(0))),
    ],
)
def test_impossible_sizes_are_named(message, call):
    with pytest.raises(ValueError, match=message):
        call()
