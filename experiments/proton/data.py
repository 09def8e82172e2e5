"""Measurements as NumPy arrays: 2054 of the proton that ship with the experiment, or a regression of scikit-learn."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from ..common.downloads import refuse_other

Name = Literal["proton", "diabetes"]
Partition = Literal["balanced", "nnpdf", "fixedtarget"]
FILE = Path(__file__).parent / "data" / "proton_dis.npz"
SHA256 = "b6a2af43373e5c913ef50f4ce97e0b0008d1c0d71187ca477bbcfde1817411cd"


class ProtonTables(NamedTuple):
    """Tables of predictions that are linear in f of shape (8, grid), x times the PDFs at Q0: `map` f, for `ratio_rows`
    `map` f / `denominator` f. The flavour combinations are `basis`."""

    grid: np.ndarray
    map: np.ndarray  # (N, 8 · grid)
    denominator: np.ndarray  # (ratio points, 8 · grid)
    ratio_rows: np.ndarray
    basis: tuple[str, ...]
    x: np.ndarray  # of the points
    Q2: np.ndarray


class RegressionTables(NamedTuple):
    """Tables of predictions that are the values of a function at the rows of `inputs`, of shape (N, features)."""

    inputs: np.ndarray


@dataclass(frozen=True)
class Measurements:
    """N points with their errors, the sets they belong to, and the points that every fold holds out."""

    name: str
    sets: tuple[str, ...]
    set_of_point: np.ndarray
    values: np.ndarray
    covariance: np.ndarray  # experimental
    covariance_t0: np.ndarray  # the one to fit with; relative errors multiply the predictions of an earlier fit
    folds: np.ndarray  # (K, N), true where held out
    tables: ProtonTables | RegressionTables


def load(name: Name, partition: Partition = "balanced", seed: int = 0) -> Measurements:
    """Returns the measurements, in float64. `seed` draws the folds where the data have none of their own."""
    return proton(FILE, partition) if name == "proton" else regression(seed)


def proton(path: Path, partition: Partition) -> Measurements:
    """Reads the file that data/README.md describes. The covariance is

        C_ij = δ_ij u_i² + Σ_s S_is S_js

    and in that of t0 the columns of S that are relative errors are multiplied by t0 prediction/datum.

    **Raises** `DataError` where the file is not the one expected.
    """
    refuse_other(path, SHA256)
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    relative = arrays["sys_treatment"] == "MULT"
    shifts = arrays["sys"]
    t0_shifts = np.where(relative, shifts * (arrays["t0_pred"] / arrays["data"])[:, None], shifts)
    covariance = lambda shifts: np.diag(arrays["unc"] ** 2) + shifts @ shifts.T
    names, of_point = [str(name) for name in arrays["names"]], arrays["dataset"].astype(int)
    fold_of_set = arrays[f"fold_{partition}"]
    folds = fold_of_set[of_point] == np.arange(fold_of_set.max() + 1)[:, None]
    inside = arrays["xgrid"] < 1  # PDFs vanish at x = 1
    flat = lambda table: table[:, :, inside].reshape(len(table), -1).astype(float)
    tables = ProtonTables(
        arrays["xgrid"][inside],
        flat(arrays["FK"]),
        flat(arrays["FK_den"]),
        np.flatnonzero(of_point == names.index("NMC_NC_NOTFIXED_EM-F2")),
        tuple(str(name) for name in arrays["basis"]),
        arrays["x"],
        arrays["Q2"],
    )
    sets = tuple(_short(name) for name in names)
    return Measurements(
        "proton", sets, of_point, arrays["data"], covariance(shifts), covariance(t0_shifts), folds, tables
    )


def _short(name: str) -> str:
    """Returns a readable name of a set: `HERA 318 e+`."""
    experiment, _, kind, *rest = name.replace("-", "_").split("_")
    if experiment == "HERA":
        return f"HERA {kind.removesuffix('GEV')} e{'+' if rest[0] == 'EP' else '-'}"
    target = {"P": "p", "D": "d", "EM": "d/p"}[rest[0]]
    return f"{experiment} {target}"


def regression(seed: int, num_folds: int = 4) -> Measurements:
    """Reads the progression of diabetes in 442 patients and ten variables (Efron et al. 2004; from scikit-learn).

    Target in units of its standard deviation. The errors are not known: one for all, the residual of the linear fit,

        σ² = |y - X (XᵀX)⁻¹ Xᵀ y|²/(N - features - 1)

    which counts as noise what a better model could explain. Folds are drawn, of equal size.
    """
    from sklearn.datasets import load_diabetes

    source = load_diabetes()
    x = source.data / source.data.std(0)
    y = (source.target - source.target.mean()) / source.target.std()
    design = np.column_stack([np.ones(len(x)), x])
    residual = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    variance = residual @ residual / (len(y) - design.shape[1])
    fold = np.random.default_rng(seed).permutation(np.arange(len(y)) % num_folds)
    covariance = variance * np.eye(len(y))
    return Measurements(
        "diabetes",
        ("diabetes",),
        np.zeros(len(y), int),
        y,
        covariance,
        covariance,
        fold == np.arange(num_folds)[:, None],
        RegressionTables(x),
    )
