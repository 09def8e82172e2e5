"""Data sets with two classes."""

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from .data import Rows, Splits
from .downloads import refuse_other

Name = Literal["ijcnn1", "a9a", "breast_cancer"]

SHA256 = {
    "ijcnn1": "d9053bb48b3ec20afe60edd5b5217220ce6eb3e2600b69c7861717d66a20d7d5",
    "a9a": "3e821d35d54b4dc7a5b99224159f0f910a5f25eaff8fd0b74b4c8e862a23c4e0",
}


class Source(NamedTuple):
    """The file of a data set; `None` where it ships with scikit-learn."""

    name: Name
    path: Path | None


def find(name: Name, data_dir: Path | None) -> Source | None:
    """Returns the source of a data set, or `None` if there is no such file.

    breast_cancer ships with scikit-learn; ijcnn1 and a9a (LIBSVM; Chang and Lin 2001) are `data_dir/NAME/NAME.npz`.
    """
    if name == "breast_cancer":
        return Source(name, None)
    path = data_dir / name / f"{name}.npz" if data_dir else None
    return Source(name, path) if path and path.exists() else None


def load(source: Source) -> Rows:
    """Returns all rows, with labels -1 and 1. **Raises** `DataError` where a file is not the one expected."""
    if source.path is None:
        from sklearn.datasets import load_breast_cancer

        data = load_breast_cancer()
        return Rows(data.data, 2 * data.target - 1)
    refuse_other(source.path, SHA256[source.name])
    with np.load(source.path) as arrays:
        return Rows(arrays["x"].astype(float), arrays["y"])


def thirds(rows: Rows, seed: int, most: int) -> Splits:
    """Returns at most so many rows, shuffled, in three equal parts; inputs are standardised on the training part."""
    order = np.random.default_rng(seed).permutation(len(rows.y))[:most]
    size = len(order) // 3
    train, valid, test = (rows.take(order[i * size : (i + 1) * size]) for i in range(3))
    mean, spread = train.x.mean(0), train.x.std(0)
    spread = np.where(spread > 0, spread, 1)
    return Splits(*(Rows((part.x - mean) / spread, part.y.astype(float)) for part in (train, valid, test)))
