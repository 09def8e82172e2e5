"""Data of sparse regression and classification, centred, and scaled such that proximal gradient takes steps of 1."""

from typing import Literal, NamedTuple

import numpy as np

from ..common.data import Rows, Splits

Name = Literal["generated", "diabetes", "breast_cancer"]
GENERATED = {"num_train": 50, "num_valid": 50, "num_test": 500}
FEATURES, INFORMATIVE, CORRELATION, SIGNAL_TO_NOISE = 1000, 10, 0.5, 3.0


class Sparse(NamedTuple):
    """The three parts, and the penalty above which all weights are zero."""

    splits: Splits
    largest_penalty: float


def generated(seed: int) -> Rows:
    """Returns rows of 1,000 features, neighbours with correlation 0.5, of which ten enter the target with weight 1.

    The noise has a third of the standard deviation of the signal. The sizes are those of the first example of
    sparse-ho, 100 rows for training and validation together; the rows for a test are ours.
    """
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(sum(GENERATED.values()), FEATURES))
    for j in range(1, FEATURES):
        x[:, j] = CORRELATION * x[:, j - 1] + np.sqrt(1 - CORRELATION**2) * x[:, j]
    signal = x[:, draw.choice(FEATURES, INFORMATIVE, replace=False)].sum(1)
    return Rows(x, signal + np.std(signal) / SIGNAL_TO_NOISE * draw.normal(size=len(x)))


def load(name: Name, seed: int) -> Sparse:
    """Returns the data set split by the seed: generated rows 50, 50 and 500, others in three equal parts."""
    if name == "generated":
        rows, ends = generated(seed), np.cumsum(list(GENERATED.values()))[:-1]
        order = np.arange(len(rows.y))
    else:
        rows = bundled(name)
        order = np.random.default_rng(seed).permutation(len(rows.y))
        ends = np.array([len(order) // 3, 2 * len(order) // 3])
    train, valid, test = (rows.take(part) for part in np.split(order, ends))
    return scaled(Splits(train, valid, test), classes=name == "breast_cancer")


def bundled(name: str) -> Rows:
    """Returns a data set that ships with scikit-learn; classes are -1 and 1."""
    from sklearn import datasets

    if name == "diabetes":
        return Rows(*datasets.load_diabetes(return_X_y=True))
    x, y = datasets.load_breast_cancer(return_X_y=True)
    return Rows(x, 2.0 * y - 1)


def scaled(splits: Splits, classes: bool) -> Sparse:
    """Standardises by the training rows, and divides all inputs by one number that makes the loss 1-smooth."""
    mean, spread = splits.train.x.mean(0), splits.train.x.std(0)
    centre, unit = (0.0, 1.0) if classes else (splits.train.y.mean(), splits.train.y.std())
    x = (splits.train.x - mean) / spread
    size = np.linalg.norm(x, 2) / np.sqrt(len(x)) / (2 if classes else 1)
    parts = [Rows((part.x - mean) / spread / size, (part.y - centre) / unit) for part in splits]
    x, y = parts[0]
    largest = np.max(np.abs(x.T @ y)) / len(y) / (2 if classes else 1)
    return Sparse(Splits(*parts), float(largest))
