"""Tabular data sets: those that ship with scikit-learn, and folders of text files with their splits."""

import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from ..common.data import Rows, Splits
from ..common.downloads import DataError

BUNDLED = ("diabetes", "breast-cancer", "wine", "digits")
LARGEST = 1e100  # whose square is a number
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
    folder = _folder(name, data_dir)
    if folder is not None:
        refuse_missing_splits(name, data_dir, [split])
        rows, train, test = _read_folder(folder, split)
        return _table(rows, shuffled(train), test, 0, share)
    if name not in BUNDLED:
        raise FileNotFoundError(f"no data set {name} in {data_dir}; there are {', '.join(available(data_dir))}")
    x, y = _bundled(name)
    order = np.random.default_rng(1000 + split).permutation(len(y))
    num_test = len(y) // 10
    classes = 0 if name == "diabetes" else int(y.max()) + 1
    return _table(Rows(x, y), shuffled(order[num_test:]), order[:num_test], classes, share)


def refuse_missing_splits(name: str, data_dir: Path | None, numbers: Iterable[int]) -> None:
    """Raises `FileNotFoundError` where a folder has not all of these splits; sets of scikit-learn have any."""
    folder = _folder(name, data_dir)
    if folder is None:
        return
    there = _splits(folder / "splits.npz")
    missing = [n for n in numbers if not {f"train_{n}", f"test_{n}"} <= set(there)]
    if missing:
        raise FileNotFoundError(f"{folder} has no split {missing[0]}: choose others with --seeds and --first-seed")


def _folder(name: str, data_dir: Path | None) -> Path | None:
    """Returns the folder of a data set, `None` where there is none of this name."""
    return next((path for path in _folders(data_dir) if path.name == name), None)


def _folders(data_dir: Path | None) -> list[Path]:
    """Returns the folders that hold a data set."""
    roots = [] if data_dir is None else [data_dir / "uci", data_dir]
    paths = [path for root in roots if root.is_dir() for path in sorted(root.iterdir())]
    return [path for path in paths if all((path / name).exists() for name in FOLDER_FILES)]


def _read_folder(folder: Path, split: int) -> tuple[Rows, np.ndarray, np.ndarray]:
    """Returns all rows, and the numbers of those that train and test in one split.

    **Raises** `DataError` naming the file where it holds no finite numbers, or columns or rows that there are not.
    """
    data, of_features, of_target, of_splits = (folder / name for name in FOLDER_FILES)
    raw = _numbers(data, float, 2)
    if bad := np.sum(~(np.abs(raw) < LARGEST)):
        raise DataError(f"{data} holds {bad} values that are NaN, infinite or above {LARGEST:g}")
    features, target = _numbers(of_features, int, 1), _numbers(of_target, int, 1)
    if len(target) != 1:
        raise DataError(f"{of_target} must name one column, got {len(target)}")
    if len(features) == 0 or target[0] in features:
        raise DataError(f"{of_features} must name columns other than the target, {target[0]}, got {features.tolist()}")
    splits = _splits(of_splits)
    train, test = splits[f"train_{split}"], splits[f"test_{split}"]
    for numbers, least in ((train, 3), (test, 1)):
        if numbers.ndim != 1 or numbers.dtype.kind not in "iu" or len(numbers) < least:
            raise DataError(
                f"{of_splits} must hold numbers of rows, at least 3 to train and 1 to test, in split {split}"
            )
    both = np.concatenate([train, test])
    for path, numbers, end in (
        (of_features, features, raw.shape[1]),
        (of_target, target, raw.shape[1]),
        (of_splits, both, len(raw)),
    ):
        if np.any((numbers < 0) | (numbers >= end)):
            raise DataError(f"{path} holds {numbers.min()} to {numbers.max()}, but {data} has 0 to {end - 1}")
    if len(np.unique(both)) < len(both):
        raise DataError(f"{of_splits} has a row twice in split {split}")
    return Rows(raw[:, features], raw[:, target[0]]), train, test


def _numbers(path: Path, kind: type, axes: Literal[1, 2]) -> np.ndarray:
    """Returns the numbers of a text file. **Raises** `DataError` naming it where it holds something else."""
    try:
        with warnings.catch_warnings():  # of a file that is empty
            warnings.simplefilter("ignore", UserWarning)
            return np.loadtxt(path, dtype=kind, ndmin=axes)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path} must hold numbers between blanks: {error}") from None


def _splits(path: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of an archive by name. **Raises** `DataError` naming it where it is damaged."""
    try:
        with np.load(path) as splits:
            return dict(splits)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} must hold arrays of numbers: {error}") from None


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
    """Returns the rows in three parts, the first of `train` validating, scaled by mean and deviation of the others.

    **Raises** `DataError` where the target of a regression is constant on these.
    """
    x, y = rows.x, rows.y
    cut = max(int(share * len(train)), 1)
    valid, train = train[:cut], train[cut:]
    mean, deviation, varies = x[train].mean(0), x[train].std(0), np.ptp(x[train], 0) > 0
    x = (x - mean) / np.where(varies, deviation, 1)  # a constant such as 0.1 deviates by rounding
    unit = 1.0
    if not classes:
        if not np.ptp(y[train]) > 0:
            raise DataError(f"the target is {y[train][0]:g} in all {len(train)} training rows: nothing to learn")
        unit = float(y[train].std())
        y = (y - y[train].mean()) / unit
    rows = Rows(x.astype(np.float32), y.astype(np.int32 if classes else np.float32))
    return Table(Splits(rows.take(train), rows.take(valid), rows.take(test)), classes, unit)
