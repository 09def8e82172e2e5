"""The memory of a loop of steps that overwrites its state, in copies of the weights."""

import jax
import jax.numpy as jnp
import optax
import pytest

import hypergrad as hg

SIZE = 300


def wide():
    """A problem with one penalty for each of many weights, in two arrays."""

    def outer(w, penalties, data, key):
        return jnp.mean((jnp.tanh(data @ w[0]) @ w[1]) ** 2)

    def inner(w, penalties, data, key):
        decay = jax.tree.map(lambda p, leaf: jnp.sum(jnp.exp(p) * leaf**2), penalties, w)
        return outer(w, penalties, data, key) + sum(decay)

    keys = jax.random.split(jax.random.key(0), 3)
    params = [0.1 * jax.random.normal(key, (SIZE, SIZE)) for key in keys[:2]]
    data = jax.random.normal(keys[2], (4, SIZE))
    return hg.BilevelProblem(inner, outer, data, data), params, jax.tree.map(jnp.zeros_like, params)


@pytest.mark.slow
def test_steps_in_place_need_less_than_four_copies_of_the_weights_besides_the_state():
    problem, params, penalties = wide()
    search = hg.GradientSearch(hg.Greedy(hg.OptaxSolver(optax.sgd(0.1, 0.9), 1)), optax.adam(0.1))
    state = search.init(problem, params, penalties)

    def steps(state, number):
        body = lambda t, state: search.step(problem, state, jax.random.fold_in(jax.random.key(0), t))[0]
        return jax.lax.fori_loop(0, number, body, state)

    found = jax.jit(steps, donate_argnums=0).lower(state, 3).compile().memory_analysis()
    if found is None:
        pytest.skip("XLA does not tell")
    copy = sum(leaf.nbytes for leaf in params)
    held = found.argument_size_in_bytes / copy
    assert held == pytest.approx(8, abs=0.1)  # weights, momentum, λ, two moments, the best and the last good ones
    assert (found.temp_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes) / copy < 4
