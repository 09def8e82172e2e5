"""Digits and MNIST for the study."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..common.data import Rows, Splits, digits, mnist, train_and_test

SIZES = {"digits": (1200, 32), "mnist-small": (4000, 64), "mnist": (60_000, 300)}  # training rows, hidden units


def samples(name: str, data_dir: Path | None) -> tuple[Callable[..., Any], int, int]:
    """Returns a function from a seed to rows, and the numbers of inputs and of hidden units."""
    num_train, hidden = SIZES[name]
    pool, test = (digits(), None) if name == "digits" else mnist(data_dir)

    def sample(seed: int) -> Splits:
        order = np.random.default_rng(seed).permutation(len(pool.y))
        train, rest = pool.take(order[:num_train]), pool.take(order[num_train:])
        held_out, mean = rest if test is None else test, train.x.mean(0)
        return train_and_test(Rows(train.x - mean, train.y), Rows(held_out.x - mean, held_out.y))

    return sample, pool.x.shape[1], hidden
