"""Data sets as NumPy arrays."""

import gzip
import math
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .downloads import DataError, download, refuse_other

INPUTS = {"digits": 64, "mnist": 784}  # pixels of an image
MNIST = {
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
ROWS = 60_000, 10_000  # for training and for tests
MNIST_MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"


class Rows(NamedTuple):
    """Inputs of shape (rows, features), and integer labels of shape (rows,) or targets of shape (rows, outputs)."""

    x: np.ndarray
    y: np.ndarray

    def take(self, index: np.ndarray) -> "Rows":
        """Returns some of the rows."""
        return Rows(self.x[index], self.y[index])


class Splits(NamedTuple):
    """Three sets without a row in common. Only the end of an experiment may use `test`."""

    train: Rows
    valid: Rows
    test: Rows


def train_and_test(train: Rows, test: Rows) -> Splits:
    """Returns two sets as splits with no validation rows."""
    return Splits(train, train.take(np.arange(0)), test)


def digits() -> Rows:
    """Returns 1797 handwritten digits of 8 x 8 pixels, scaled to [0, 1] (UCI optdigits test set, from scikit-learn)."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return Rows((data.data / 16).astype(np.float32), data.target.astype(np.int32))


def mnist(data_dir: Path | None) -> tuple[Rows, Rows]:
    """Returns the 60,000 training and 10,000 test images of MNIST, 784 pixels scaled to [0, 1] (LeCun et al. 1998).

    The four original IDX files are read from `data_dir` or `data_dir/mnist`, or downloaded to the user's cache.

    **Raises** `DataError` where the SHA-256 of a file does not match, and `FileNotFoundError` with advice where a file
    can neither be found nor downloaded.
    """
    return _read_idx([_mnist_file(name, data_dir) for name in MNIST])


def fashion_mnist(data_dir: Path | None) -> tuple[Rows, Rows]:
    """Returns the 60,000 training and 10,000 test images of Fashion-MNIST (Xiao, Rasul, Vollgraf 2017).

    The four IDX files have MNIST's names and format. They are read from `data_dir`/fashion-mnist or `data_dir`.

    **Raises** `FileNotFoundError` where they are missing, `DataError` naming a file that is damaged, of other sizes or
    MNIST's.
    """
    import pooch

    folders = [data_dir / "fashion-mnist", data_dir] if data_dir else []
    folder = next((folder for folder in folders if all((folder / name).exists() for name in MNIST)), None)
    if folder is None:
        raise FileNotFoundError(f"the four IDX files {', '.join(MNIST)} of Fashion-MNIST are not in {data_dir}")
    for name, known in MNIST.items():
        if pooch.file_hash(str(folder / name)) == known:
            raise DataError(f"{folder / name} is MNIST's, not Fashion-MNIST's")
    return _read_idx([folder / name for name in MNIST])


def image_sets(name: str, data_dir: Path | None) -> tuple[Rows, Rows]:
    """Returns the training and test images of `mnist` or `fashion`."""
    return (fashion_mnist if name == "fashion" else mnist)(data_dir)


def _read_idx(files: list[Path]) -> tuple[Rows, Rows]:
    images = [_idx(path, rows, 28, 28).reshape(rows, 784) for path, rows in zip(files[::2], ROWS, strict=True)]
    labels = [_idx(path, rows) for path, rows in zip(files[1::2], ROWS, strict=True)]
    train, test = (Rows(x.astype(np.float32) / 255, y.astype(np.int32)) for x, y in zip(images, labels, strict=True))
    return train, test


def _mnist_file(name: str, data_dir: Path | None) -> Path:
    for folder in [data_dir, data_dir / "mnist"] if data_dir else []:
        if (folder / name).exists():
            refuse_other(folder / name, MNIST[name])
            return folder / name
    advice = "put MNIST's four original IDX files (.gz) into a folder and name it with --data-dir"
    return download(MNIST_MIRROR + name, MNIST[name], data_dir, advice)


def _idx(path: Path, *shape: int) -> np.ndarray:
    """Returns the bytes of an IDX file of one shape; no more are read than it should have."""
    header, size = bytes([0, 0, 8, len(shape)]) + np.array(shape, ">i4").tobytes(), math.prod(shape)
    try:
        with gzip.open(path) as file:
            content = file.read(len(header) + size + 1)
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path} is damaged: {error}") from error
    if len(content) != len(header) + size or not content.startswith(header):
        raise DataError(f"{path} is no IDX file of {' x '.join(map(str, shape))} bytes")
    return np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape)


def split(name: str, data_dir: Path | None, seed: int, num_train: int, num_valid: int) -> Splits:
    """Returns digits or MNIST, shuffled by `seed`, inputs centred on the training mean; MNIST keeps its test set."""
    if name == "mnist":
        pool, test = mnist(data_dir)
    else:
        pool, test = digits(), None
    order = np.random.default_rng(seed).permutation(len(pool.y))
    if num_train + num_valid > len(order) - (test is None):
        raise DataError(f"num_train + num_valid is {num_train + num_valid}, but {name} has {len(order)} rows to share")
    train, valid = pool.take(order[:num_train]), pool.take(order[num_train : num_train + num_valid])
    test = pool.take(order[num_train + num_valid :]) if test is None else test
    mean = train.x.mean(0)
    return Splits(*(Rows(rows.x - mean, rows.y) for rows in (train, valid, test)))
