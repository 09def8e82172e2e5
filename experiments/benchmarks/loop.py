"""The time of a step of `run`, compared with that of the same step written by hand and called in a loop.

`python -m experiments.benchmarks.loop` prints both.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import tyro

import hypergrad as hg

from .measure import Rounds

RATE, MOMENTUM, OUTER_RATE = 0.05, 0.9, 1e-2
CHUNKS = (1, 10, 100, None)


@dataclasses.dataclass(frozen=True)
class Config:
    """Time greedy steps of a small network, whose four decays Adam moves.

    The step by hand is one compiled call, of which none is waited for. It keeps no records, choices or counts.
    """

    steps: int = 2_000  # Steps of one run.
    rounds: int = 7  # Runs of each kind, in turns; the median of their ratios is reported.


def example() -> tuple[hg.BilevelProblem, Any, Any]:
    """Returns a problem of 64 rows, weights and hyperparameters."""
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (64, 8))
    y = jnp.sin(x.sum(1))
    first, second = (0.3 * jax.random.normal(key, shape) for key, shape in zip(keys[1:], [(8, 16), (16,)], strict=True))
    params = {"w1": first, "b1": jnp.zeros(16), "w2": second, "b2": jnp.zeros(())}

    def outer(w, decays, data, key):
        x, y = data
        return jnp.mean((jnp.tanh(x @ w["w1"] + w["b1"]) @ w["w2"] + w["b2"] - y) ** 2)

    def inner(w, decays, data, key):
        return outer(w, decays, data, key) + sum(jnp.exp(decays[name]) * jnp.sum(w[name] ** 2) for name in w)

    problem = hg.BilevelProblem(inner, outer, (x[:48], y[:48]), (x[48:], y[48:]))
    return problem, params, {name: jnp.full((), -5.0) for name in params}


def by_hand(problem: hg.BilevelProblem, params: Any, decays: Any, steps: int) -> Callable[[], Any]:
    """Returns a loop over a compiled step: one of training, its derivative by λ, and one of Adam."""
    sgd, adam = optax.sgd(RATE, MOMENTUM), optax.adam(OUTER_RATE)

    @jax.jit
    def step(carry, train, valid):
        params, momentum, decays, moments = carry

        def trained(decays):
            gradient = jax.grad(problem.inner_loss)(params, decays, train, None)
            updates, after = sgd.update(gradient, momentum)
            return optax.apply_updates(params, updates), after

        new, pullback, momentum = jax.vjp(trained, decays, has_aux=True)
        value, gradient = jax.value_and_grad(problem.outer_loss)(new, decays, valid, None)
        updates, moments = adam.update(pullback(gradient)[0], moments)
        return (new, momentum, optax.apply_updates(decays, updates), moments), value

    start = params, sgd.init(params), decays, adam.init(decays)

    def loop():
        carry = start
        for _ in range(steps):
            carry, value = step(carry, problem.train, problem.valid)
        return value

    return loop


def main(config: Config) -> dict[str, float]:
    """Prints the microseconds of a step by name, and returns the ratios to the step by hand."""
    problem, params, decays = example()
    inner = hg.OptaxSolver(optax.sgd(RATE, MOMENTUM), 1)
    search = hg.GradientSearch(hg.Greedy(inner), optax.adam(OUTER_RATE))
    state, key = search.init(problem, params, decays), jax.random.key(1)
    again = lambda chunk: hg.run(search, problem, state, key=key, budget=config.steps, chunk=chunk)[0].best.value
    calls = {"by hand": by_hand(problem, params, decays, config.steps)}
    calls |= {f"run, chunk={chunk}": lambda chunk=chunk: again(chunk) for chunk in CHUNKS}
    timed = Rounds(calls, config.rounds)
    found = {name: timed.ratio(name, "by hand") for name in calls}
    for name, ratio in found.items():
        print(f"{name:16} {timed.seconds(name) / config.steps * 1e6:8.1f} µs  {ratio:5.2f} steps by hand")
    return found


if __name__ == "__main__":
    main(tyro.cli(Config))
