"""Data of sparse regression and classification, centred, and scaled such that proximal gradient takes steps of 1."""

from typing import Literal

import numpy as np

from ..common import binary
from ..common.data import Rows, Splits, train_and_test

Name = Literal["generated", "diabetes", "breast_cancer", "a9a", "ijcnn1"]
GENERATED = {"num_train": 50, "num_valid": 50, "num_test": 500}
FEATURES, INFORMATIVE, CORRELATION, SIGNAL_TO_NOISE = 1000, 10, 0.5, 3.0


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


def load(name: Name, seed: int, source: binary.Source | None, most: int, folds: int | None = None) -> Splits:
    """Returns the data set split by the seed: generated rows 50, 50 and 500, others in three equal parts.

    `source` is that of a set with two classes, -1 and 1, of which `most` rows are drawn. With `folds` the first two
    parts are training rows together, for cross-validation.
    """
    if name == "generated":
        rows, ends = generated(seed), np.cumsum(list(GENERATED.values()))[:-1]
        order = np.arange(len(rows.y))
    else:
        rows = diabetes() if source is None else binary.load(source)
        order = np.random.default_rng(seed).permutation(len(rows.y))[:most]
        ends = np.array([len(order) // 3, 2 * len(order) // 3])
    train, valid, test = (rows.take(part) for part in np.split(order, ends))
    classes = source is not None
    if folds is None:
        return scaled(Splits(train, valid, test), classes)
    both = Rows(*map(np.concatenate, zip(train, valid, strict=True)))
    return scaled(train_and_test(both, test), classes, of_rows=1 - 1 / folds)


def diabetes() -> Rows:
    """Returns the regression that ships with scikit-learn."""
    from sklearn.datasets import load_diabetes

    return Rows(*load_diabetes(return_X_y=True))


def scaled(splits: Splits, classes: bool, of_rows: float = 1.0) -> Splits:
    """Standardises by the training rows, and divides all inputs by one number that makes the loss 1-smooth.

    It is so for training on any share `of_rows` of them too.
    """
    mean, spread = splits.train.x.mean(0), splits.train.x.std(0)
    spread = np.where(spread > 0, spread, 1)
    centre, unit = (0.0, 1.0) if classes else (splits.train.y.mean(), splits.train.y.std())
    x = (splits.train.x - mean) / spread
    size = np.linalg.norm(x, 2) / np.sqrt(of_rows * len(x)) / (2 if classes else 1)
    return Splits(*(Rows((part.x - mean) / spread / size, (part.y - centre) / unit) for part in splits))
