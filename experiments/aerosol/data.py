"""Aerosol activation as NumPy arrays: four modes by a scheme, one mode by a parcel model."""

from itertools import pairwise
from pathlib import Path

import numpy as np

from ..common.data import Rows, Splits
from .arg2000 import Modes, activated

PARCEL = Path(__file__).parent / "aerosol_parcel.npz"
BLOCK = 100_000  # rows
NAMES = ("accumulation", "aitken", "coarse", "primary carbon")
DEVIATIONS = np.array([1.8, 1.6, 1.8, 1.6])
# log10 of updraft (m/s), temperature (K), pressure (Pa); then four times log10 number (cm⁻³), log10 radius (µm), kappa
LOW = np.array([-2, 248, 5e4, 0.5, 0.5, -3, 0, *np.log10([0.0267, 0.00435, 0.2, 0.005]), 0.02, 0.02, 0.02, 1e-3])
HIGH = np.array([1, 310, 1.05e5, 3.5, 4, 0.5, 3.5, *np.log10([0.22, 0.026, 2.0, 0.05]), 1.2, 1.2, 1.2, 0.3])


def four_modes(num_train: int, num_valid: int = 16_000, num_test: int = 16_000, seed: int = 20230214) -> Splits:
    """Returns fifteen inputs, uniform over their ranges (some in logarithm), and activated fractions of four modes.

    The layout is that of Yu et al. (2023); the ranges are ours, after the modes of MAM4, and it is the scheme of
    Abdul-Razzak and Ghan (2000) that is emulated, not a parcel model. Inputs are scaled to [-1, 1].
    """
    random, rows = np.random.default_rng(seed), num_test + num_valid + num_train
    # Test rows first, so that they are the same for every number of training rows; in blocks, for memory.
    sizes = [min(BLOCK, rows - start) for start in range(0, rows, BLOCK)]
    blocks = [_four_modes(random.random((size, len(LOW)))) for size in sizes]
    x, y = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    ends = np.cumsum([0, num_test, num_valid, num_train])
    test, valid, train = (Rows(x[a:b], y[a:b]) for a, b in pairwise(ends))
    return Splits(train, valid, test)


def _four_modes(points: np.ndarray) -> Rows:
    """Returns the rows at these points of the unit cube."""
    x = LOW + (HIGH - LOW) * points
    modes = Modes(1e6 * 10 ** x[:, 3:7], 1e-6 * 10 ** x[:, 7:11], DEVIATIONS, x[:, 11:15])
    fractions = activated(10 ** x[:, 0], x[:, 1], x[:, 2], modes)
    return Rows((2 * points - 1).astype(np.float32), fractions.astype(np.float32))


def parcel() -> tuple[Splits, float]:
    """Returns eight inputs of one mode and activated fractions by a parcel model: 18,000, 3,000 and 3,000 rows.

    Inputs: log10 number, log10 radius, geometric deviation, kappa, log10 updraft, temperature, pressure, accommodation
    coefficient, scaled to mean 0 and deviation 1 on the training rows. Also the test mean squared error of the scheme.
    """
    with np.load(PARCEL) as file:
        inputs, outputs, split = file["inputs"], file["outputs"], file["split"]
    train = inputs[split == 0]
    x = ((inputs - train.mean(0)) / train.std(0)).astype(np.float32)
    parts = [Rows(x[split == part], outputs[split == part, 1:2]) for part in range(3)]
    test = outputs[split == 2]
    return Splits(*parts), float(np.mean((test[:, 1] - test[:, 3]) ** 2))
