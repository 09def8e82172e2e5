"""WISDM activity prediction 1.1: the transformed features, which ship with the study, and the raw series."""

import gzip
import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..common.data import Rows, Splits, train_and_test
from ..common.downloads import DataError, download, keep, members, refuse_other

HERE = Path(__file__).parent / "data"
ARFF_FILE = "WISDM_ar_v1.1_transformed.arff"
FEATURES_FILE = ARFF_FILE + ".gz"
FEATURES_SHA256 = "fb8f3158216bff7efda89e257a4b85d9d57afa540d07692ee46072f2344efc3f"
RAW_FILE = "WISDM_ar_v1.1_raw.txt"
ARCHIVE = "https://www.cis.fordham.edu/wisdm/includes/datasets/latest/WISDM_ar_latest.tar.gz"
RAW_COUNTS = {  # as its about file has them
    "Walking": 424_400,
    "Jogging": 342_177,
    "Upstairs": 122_869,
    "Downstairs": 100_427,
    "Sitting": 59_939,
    "Standing": 48_395,
}
ACTIVITIES = tuple(RAW_COUNTS)
USELESS = ("UNIQUE_ID", "user", "XAVG", "ZSTANDDEV", "class")  # XAVG is 0, ZSTANDDEV repeats XSTANDDEV
NUM_TRAIN, NUM_TEST = 3000, 1500  # rows of the features: the same for every seed
TEST_USERS = 1 / 3  # of the raw series
WINDOW = 199


def read_features(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns features (5418, 41), activities and users of the ARFF file; a missing value is NaN.

    **Raises** `DataError` where the file is not the known one.
    """
    refuse_other(path, FEATURES_SHA256)
    with gzip.open(path, "rt") as file:
        head, _, body = file.read().partition("@data")
    names = [line.split()[1].strip('"') for line in head.splitlines() if line.startswith("@attribute")]
    names[-1] = "class"  # its values follow without a space
    table = [line.split(",") for line in body.split()]
    columns = dict(zip(names, zip(*table, strict=True), strict=True))
    used = [name for name in names if name not in USELESS]
    x = np.array([[np.nan if value == "?" else float(value) for value in columns[name]] for name in used]).T
    y = np.array([ACTIVITIES.index(value.strip('"')) for value in columns["class"]], np.int32)
    return x, y, np.array([int(value.strip('"')) for value in columns["user"]])


def features(data_dir: Path | None) -> tuple[Callable[..., Any], int, int]:
    """Returns a function from a seed to rows, and the numbers of features and of classes.

    No user is in both the training and the test rows.
    """
    given = data_dir / "wisdm" / FEATURES_FILE if data_dir else HERE
    x, y, users = read_features(given if given.is_file() else HERE / FEATURES_FILE)

    return lambda seed: _standardised(x, y, *split_users(users, seed)), x.shape[1], len(ACTIVITIES)


def split_users(users: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the indices of 3,000 training and 1,500 test rows, no user in both."""
    random = np.random.default_rng(seed)
    order = random.permutation(np.unique(users))
    counts = np.cumsum([np.sum(users == user) for user in order])
    training = np.isin(users, order[: int(np.searchsorted(counts, NUM_TRAIN)) + 1])
    train, test = (random.permutation(np.flatnonzero(mask)) for mask in (training, ~training))
    return train[:NUM_TRAIN], test[:NUM_TEST]


def _standardised(x: np.ndarray, y: np.ndarray, train: np.ndarray, test: np.ndarray) -> Splits:
    """Returns the rows standardised by the training rows; a missing value becomes their mean."""
    mean, deviation = np.nanmean(x[train], 0), np.nanstd(x[train], 0) + 1e-9
    scaled = np.nan_to_num((x - mean) / deviation).astype(np.float32)
    return train_and_test(Rows(scaled[train], y[train]), Rows(scaled[test], y[test]))


def read_series(source: io.TextIOBase) -> tuple[np.ndarray, list[tuple[int, str]]]:
    """Returns accelerations (records, 3) of the raw file and (user, activity) of every record.

    A record is `user,activity,timestamp,x,y,z;`. Some lines hold several records, some records double the last comma or
    lack a number: a record without three numbers is left out.
    """
    values, labels = [], []
    for record in source.read().replace("\n", ";").split(";"):
        fields = [field.strip() for field in record.split(",")]
        try:
            user, activity, acceleration = int(fields[0]), fields[1], [float(field) for field in fields[3:6]]
        except (IndexError, ValueError):
            continue
        if activity in RAW_COUNTS and len(acceleration) == 3:
            values.append(acceleration)
            labels.append((user, activity))
    return np.array(values, np.float32), labels


def check_counts(labels: list[tuple[int, str]], slack: int = 20) -> None:
    """Checks the number of records of every class against the data's description.

    **Raises** `DataError` where it differs by more than a few malformed records.
    """
    found = Counter(activity for _, activity in labels)
    wrong = {name: found[name] for name, known in RAW_COUNTS.items() if abs(found[name] - known) > slack}
    if wrong:
        raise DataError(f"{RAW_FILE}: records per class {wrong} do not match {RAW_COUNTS}")


def windows(values: np.ndarray, labels: list[tuple[int, str]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns 199 consecutive norms, the 200th, and the user, without overlap, for every stretch of one activity."""
    norms = np.linalg.norm(values, axis=1)
    changes = [i for i in range(1, len(labels)) if labels[i] != labels[i - 1]]
    x, y, users = [], [], []
    for start, end in zip([0, *changes], [*changes, len(labels)], strict=True):
        for first in range(start, end - WINDOW, WINDOW + 1):
            x.append(norms[first : first + WINDOW])
            y.append(norms[first + WINDOW])
            users.append(labels[start][0])
    return np.array(x), np.array(y), np.array(users)


def raw_file(data_dir: Path | None) -> Path:
    """Returns the file of the raw series, in `data_dir` or `data_dir/wisdm`, or downloaded to the user's cache.

    No checksum of the archive is published. The archive is recognised by the transformed features in it, which must be
    word for word the file that ships with the study.

    **Raises** `DataError` where they are not, `FileNotFoundError` where the download fails.
    """
    for folder in [data_dir / "wisdm", data_dir] if data_dir else []:
        if (folder / RAW_FILE).is_file():
            return folder / RAW_FILE
    advice = f"unpack {RAW_FILE} from there into a folder and name it with --data-dir"
    archive = download(ARCHIVE, None, data_dir, advice)
    files = members(archive, (RAW_FILE, ARFF_FILE))
    if files[ARFF_FILE].split() != gzip.decompress((HERE / FEATURES_FILE).read_bytes()).split():
        raise DataError(f"{archive} is not the archive of version 1.1 from {ARCHIVE}; delete it")
    return keep(archive.with_name(RAW_FILE), files[RAW_FILE])


def series(data_dir: Path | None) -> tuple[Callable[..., Any], int]:
    """Returns a function from a seed to rows, and the number of inputs."""
    with open(raw_file(data_dir)) as source:
        values, labels = read_series(source)
    check_counts(labels)
    x, y, users = windows(values, labels)

    def sample(seed: int) -> Splits:
        names = np.random.default_rng(seed).permutation(np.unique(users))
        held_out = np.isin(users, names[: round(TEST_USERS * len(names))])
        mean, deviation = x[~held_out].mean(), x[~held_out].std()
        scaled, target = (x - mean) / deviation, (y - mean) / deviation
        rows = lambda mask: Rows(scaled[mask].astype(np.float32), target[mask].astype(np.float32))
        return train_and_test(rows(~held_out), rows(held_out))

    return sample, WINDOW
