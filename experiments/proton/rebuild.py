"""Build `data/proton_dis.npz` again, from published measurements and perturbative QCD.

    pip install 'hypergrad-jax[proton]'
    python -m experiments.proton.rebuild --work build/proton            # everything, some tens of minutes
    python -m experiments.proton.rebuild --work build/proton --stage measurements

Stages, each kept in the folder --work: `measurements` (nnpdf-data), `evolution` (eko), `coefficients` (yadism),
`tables` (their product), `pack`. The theory is next-to-leading order, zero-mass variable flavour number scheme.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from .rebuild_sets import BASIS, M_PROTON, MAX_Q2, MIN_Q2, MIN_W2, SETS
from .rebuild_theory import Q0, coefficients, evolution, tables

UNCORRELATED, OWN = ("UNCORR", "THEORYUNCORR"), ("CORR", "THEORYCORR")


@dataclass(frozen=True)
class Config:
    """Rebuild the proton data."""

    work: Path  # Folder of intermediate results.
    stage: Literal["all", "measurements", "evolution", "coefficients", "tables", "pack"] = "all"  # One stage only.
    t0: Path | None = None
    """npz with t0_pred and toyLH_xf8 to take over, such as the file that ships: both come from fits and toys, not from
    measurements. Without it t0_pred is the data, that is, the experimental covariance."""


def measurements(work: Path) -> None:
    """Stores central values, errors and kinematics of all sets, after the cuts."""
    import nnpdf_data

    root = Path(nnpdf_data.__file__).parent / "commondata"
    sets = [_measured(one.name, root) for one in SETS]
    columns: dict[str, str] = {}
    for one in sets:
        columns |= {name: kind for name, kind in one["shifts"] if name not in UNCORRELATED}
    names, sizes = list(columns), [len(one["x"]) for one in sets]
    shifts, variance, first = np.zeros((sum(sizes), len(names))), np.zeros(sum(sizes)), 0
    for one, size in zip(sets, sizes, strict=True):
        rows = slice(first, first + size)
        variance[rows] += one["stat"] ** 2
        for (name, _), column in zip(one["shifts"], one["errors"].T, strict=True):
            if name in UNCORRELATED:
                variance[rows] += column**2
            else:
                shifts[rows, names.index(name)] += column
        first += size
    join = lambda key: np.concatenate([one[key] for one in sets])
    np.savez(
        work / "measurements.npz",
        names=np.array([one.name for one in SETS]),
        dataset=np.repeat(np.arange(len(SETS)), sizes).astype(np.int16),
        x=join("x"),
        Q2=join("Q2"),
        y=join("y"),
        data=join("data"),
        stat=join("stat"),
        unc=np.sqrt(variance),
        sys=shifts,
        sys_names=np.array(names),
        sys_treatment=np.array(list(columns.values())),
    )


def _measured(name: str, root: Path) -> dict[str, Any]:
    """Reads one set.

    The metadata are parsed directly because `load_dataset_metadata` needs the package validphys. The columns of
    `systematic_errors` are the additive ones, then the multiplicative ones, absolute, by the central values.
    """
    import yaml
    from nnpdf_data.commondataparser import load_commondata, parse_new_metadata

    folder, observable = name.rsplit("_", 1)
    metadata = parse_new_metadata(root / folder / "metadata.yaml", observable, variant="legacy")
    table = load_commondata(metadata)
    x, Q2, third = (np.array(table.get_kintable()[:, i], float) for i in range(3))
    if metadata.kinematic_coverage[2] == "y":
        y = third
    else:
        bins = yaml.safe_load((root / folder / f"kinematics_{observable}.yaml").read_text())["bins"]
        y = np.array([one["y"]["mid"] for one in bins], float)
    inside = (Q2 > MIN_Q2) & (M_PROTON**2 + Q2 * (1 - x) / x > MIN_W2) & (Q2 <= MAX_Q2)
    kinds = [(list(table.additive_errors.columns), "ADD"), (list(table.multiplicative_errors.columns), "MULT")]
    raw = [(column, kind) for columns, kind in kinds for column in columns]
    errors = table.systematic_errors()
    if list(errors.columns) != [column for column, _ in raw]:
        raise ValueError(f"{name}: the systematic errors of this nnpdf-data are in another order than expected")
    shifts = [(f"{name}:{j}" if column in OWN else column, kind) for j, (column, kind) in enumerate(raw)]
    values = {"data": table.central_values, "stat": table.stat_errors, "errors": errors}
    kept = {key: np.array(value, float)[inside] for key, value in values.items()}
    return {"shifts": shifts, "x": x[inside], "Q2": Q2[inside], "y": y[inside], **kept}


def pack(work: Path, t0: Path | None) -> None:
    """Writes one file of all that the experiment reads."""
    with np.load(work / "measurements.npz") as file:
        measured = dict(file)
    with np.load(work / "tables.npz") as file:
        theory = {name: file[name] if name == "xgrid" else file[name].astype(np.float32) for name in file.files}
    taken = {"t0_pred": measured["data"], "toyLH_xf8": np.zeros((len(BASIS), len(theory["xgrid"])))}
    if t0 is not None:
        with np.load(t0) as file:
            taken = {name: file[name] for name in taken}
    folds = np.array([one.folds for one in SETS], np.int8).T
    partitions = dict(zip(("fold_nnpdf", "fold_balanced", "fold_fixedtarget"), folds, strict=True))
    np.savez_compressed(
        work / "proton_dis.npz", **measured, **theory, **taken, **partitions, basis=np.array(BASIS), Q0=Q0
    )


def main(config: Config) -> None:
    """Runs all stages, or one."""
    config.work.mkdir(parents=True, exist_ok=True)
    stages: dict[str, Callable[[Path], None]] = {
        "measurements": measurements,
        "evolution": evolution,
        "coefficients": coefficients,
        "tables": tables,
        "pack": lambda work: pack(work, config.t0),
    }
    for name, stage in stages.items():
        if config.stage in ("all", name):
            print(name, flush=True)
            stage(config.work)


if __name__ == "__main__":
    main(tyro.cli(Config, prog="python -m experiments.proton.rebuild"))
