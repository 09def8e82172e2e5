"""Tabular data sets: those that ship with scikit-learn, and folders of text files with their splits."""

import gzip
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..common.data import Rows, Splits

BUNDLED = ("diabetes", "breast-cancer", "wine", "digits")
FOLDER_FILES = ("data.txt.gz", "index_features.txt", "index_target.txt", "splits.npz")


class Table(NamedTuple):
    """A data set split in three and standardised on its training rows.

    - `classes`: 0 for a regression.
    - `unit`: the standard deviation of the target in its own unit, 1 for classes.
    """

    splits: Splits
    classes: int
    unit: float


def available(data_dir: Path | None) -> list[str]:
    """Returns the names of the sets: those of the folder, or of its folder `uci`, then those of scikit-learn."""
    return [path.name for path in _folders(data_dir)] + list(BUNDLED)


def read(name: str, data_dir: Path | None, split: int, share: float) -> Table:
    """Returns a data set; `share` of the training rows validate.

    **Raises** `FileNotFoundError` for an unknown name, saying which there are.
    """
    shuffled = np.random.default_rng(split).permutation
    folder = next((path for path in _folders(data_dir) if path.name == name), None)
    if folder is not None:
        rows, train, test = _read_folder(folder, split)
        return _table(rows, shuffled(train), test, 0, share)
    if name not in BUNDLED:
        raise FileNotFoundError(f"no data set {name} in {data_dir}; there are {', '.join(available(data_dir))}")
    x, y = _bundled(name)
    order = np.random.default_rng(1000 + split).permutation(len(y))
    num_test = len(y) // 10
    classes = 0 if name == "diabetes" else int(y.max()) + 1
    return _table(Rows(x, y), shuffled(order[num_test:]), order[:num_test], classes, share)


def _folders(data_dir: Path | None) -> list[Path]:
    """Returns the folders that hold a data set."""
    roots = [] if data_dir is None else [data_dir / "uci", data_dir]
    paths = [path for root in roots if root.is_dir() for path in sorted(root.iterdir())]
    return [path for path in paths if all((path / name).exists() for name in FOLDER_FILES)]


def _read_folder(folder: Path, split: int) -> tuple[Rows, np.ndarray, np.ndarray]:
    """Returns all rows, and the numbers of those that train and test in one split.

    **Raises** `FileNotFoundError` where the folder has no such split.
    """
    with gzip.open(folder / "data.txt.gz", "rt") as file:
        raw = np.loadtxt(file)
    features = np.loadtxt(folder / "index_features.txt", dtype=int, ndmin=1)
    target = int(np.loadtxt(folder / "index_target.txt"))
    with np.load(folder / "splits.npz") as splits:
        if f"train_{split}" not in splits:
            raise FileNotFoundError(f"{folder} has no split {split}")
        return Rows(raw[:, features], raw[:, target]), splits[f"train_{split}"], splits[f"test_{split}"]


def _bundled(name: str) -> tuple[np.ndarray, np.ndarray]:
    from sklearn import datasets

    load = {
        "diabetes": datasets.load_diabetes,
        "breast-cancer": datasets.load_breast_cancer,
        "wine": datasets.load_wine,
        "digits": datasets.load_digits,
    }[name]
    return load(return_X_y=True)


def _table(rows: Rows, train: np.ndarray, test: np.ndarray, classes: int, share: float) -> Table:
    """Returns the rows in three parts, the first of `train` validating, scaled by mean and deviation of the others."""
    x, y = rows.x, rows.y
    cut = max(int(share * len(train)), 1)
    valid, train = train[:cut], train[cut:]
    mean, deviation = x[train].mean(0), x[train].std(0)
    x = (x - mean) / np.where(deviation > 0, deviation, 1)
    unit = 1.0
    if not classes:
        unit = float(y[train].std())
        y = (y - y[train].mean()) / unit
    rows = Rows(x.astype(np.float32), y.astype(np.int32 if classes else np.float32))
    return Table(Splits(rows.take(train), rows.take(valid), rows.take(test)), classes, unit)
