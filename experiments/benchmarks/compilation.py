"""The time until the first result on a deep transformer, compared with that of the same recursion written by hand.

`python -m experiments.benchmarks.compilation` prints the seconds of both, tracing and compilation by XLA together.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import tyro

import hypergrad as hg

from ..common.report import text_table
from ..vision.text import Transformer
from .cost import entries
from .measure import arguments, seconds
from .problems import Benchmark, cross_entropy, l2

LETTERS, LENGTH, WIDTH, LINES = 16, 16, 16, 4


@dataclasses.dataclass(frozen=True)
class Config:
    """Time the first call of every estimator on a transformer with a penalty for every array of weights.

    Time is CPU time of a first call less that of a second, the shortest of some.
    """

    layers: int = 12  # Layers of the transformer.
    steps: int = 25  # Training steps that a hypergradient is taken through.
    repeats: int = 2  # First calls, each with nothing compiled.
    only: tuple[str, ...] = ()  # Names of the estimators to time; all by default.


def transformer(layers: int, num_steps: int) -> Benchmark:
    """Returns letters of no meaning, to be predicted by a transformer."""
    model = Transformer(LETTERS, LENGTH, WIDTH, layers, jax.random.key(0))
    params, fixed = eqx.partition(model, eqx.is_inexact_array)
    draw = lambda seed: np.random.default_rng(seed).integers(LETTERS, size=(LINES, LENGTH + 1), dtype=np.int32)

    def outer_loss(params, log_penalty, data, key):
        predict = lambda line: eqx.combine(params, fixed)(line, None)[0]
        logits = jax.vmap(predict)(data[:, :-1])
        return jnp.mean(cross_entropy(logits.reshape(-1, LETTERS), data[:, 1:].reshape(-1)))

    def inner_loss(params, log_penalty, data, key):
        return outer_loss(params, log_penalty, data, key) + l2(params, log_penalty)

    hparams = jax.tree.map(lambda w: jnp.full((), -5.0), params)
    problem = hg.BilevelProblem(inner_loss, outer_loss, draw(0), draw(1))
    return Benchmark("transformer", problem, params, hparams, 0.1, num_steps)


def first_call(make: Callable[[], Callable[[], Any]], repeats: int) -> float:
    """Returns the seconds that the first call of what is made takes more than its second."""

    def once() -> float:
        jax.clear_caches()
        call = make()
        return seconds(call) - seconds(call)

    return min(once() for _ in range(repeats))


def main(config: Config) -> list[dict[str, Any]]:
    """Prints and returns the seconds of every estimator and of its recursion by hand."""
    case, key, rows = transformer(config.layers, config.steps), jax.random.key(0), []
    chosen = {entry.name: entry for entry in entries(case)}
    if unknown := set(config.only) - set(chosen):
        raise SystemExit(f"--only: no estimator {', '.join(sorted(unknown))}, there are {', '.join(chosen)}")
    for entry in [chosen[name] for name in config.only or chosen]:
        learn = lambda one=entry.estimator: hg.value_and_hypergrad(case.problem, one)
        ours = lambda learn=learn: partial(learn(), case.hparams, case.params, key)
        by_hand = lambda bare=entry.bares[0]: partial(jax.jit(bare), *arguments(case))
        found, hand = first_call(ours, config.repeats), first_call(by_hand, config.repeats)
        rows.append({"": entry.name, "seconds": found, "by hand": hand, "ratio": found / hand})
        print(f"{entry.name}: {found:.1f} s, by hand {hand:.1f} s", flush=True)
    print(text_table([{name: f"{v:.2f}" if isinstance(v, float) else v for name, v in row.items()} for row in rows]))
    return rows


if __name__ == "__main__":
    main(tyro.cli(Config))
