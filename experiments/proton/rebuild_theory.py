"""Perturbative QCD for `rebuild`: evolution with eko, coefficient functions with yadism, their product."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .rebuild_sets import BASIS, M_PROTON, MAX_Q2, SETS, Set

Q0, M_CHARM, M_BOTTOM, M_TOP, M_Z = 1.65, 1.51, 4.92, 172.5, 91.2
ALPHA_S, ALPHA_EM = 0.118, 0.007496252
PATCHES = {4: (Q0, M_BOTTOM, 5), 5: (M_BOTTOM, MAX_Q2**0.5, 6)}  # flavours: from, to [GeV], segments of nodes


def grid() -> list[float]:
    """Returns the grid of 36 points, from 3e-5 to 1: logarithmic up to 0.1, then linear."""
    from eko.interpolation import make_grid

    found = make_grid(17, 20, x_min=3e-5)
    return [float(x) for x in getattr(found, "raw", found)]


def cards(start: float, flavours: int, scales: list[float]) -> tuple[Any, Any]:
    """Returns theory and operator card of eko: evolution from one scale to others with a fixed number of flavours."""
    from eko.io.runcards import OperatorCard, TheoryCard

    unknown = float("nan")
    theory = {
        "order": [2, 0],
        "couplings": {"alphas": ALPHA_S, "alphaem": ALPHA_EM, "em_running": False, "ref": (M_Z, 5)},
        "heavy": {
            "masses": [[M_CHARM, unknown], [M_BOTTOM, unknown], [M_TOP, unknown]],
            "masses_scheme": "POLE",
            "matching_ratios": [1.0, 1.0, 1.0],
        },
        "xif": 1.0,
        "n3lo_ad_variation": (0,) * 7,
        "matching_order": [1, 0],
        "use_fhmruvv": True,
    }
    how = {
        "evolution_method": "truncated",
        "ev_op_max_order": [10, 0],
        "ev_op_iterations": 1,
        "scvar_method": "expanded",
        "inversion_method": "expanded",
        "interpolation_polynomial_degree": 4,
        "interpolation_is_log": True,
        "polarized": False,
        "time_like": False,
        "n_integration_cores": 1,
    }
    operator = {
        "init": (start, flavours),
        "mugrid": [(scale, flavours) for scale in scales],
        "xgrid": grid(),
        "configs": how,
        "debug": {"skip_singlet": False, "skip_non_singlet": False},
    }
    return TheoryCard.from_dict(theory), OperatorCard.from_dict(operator)


def coupling() -> Callable[[float, int], float]:
    """Returns a_s = α_s/4π at Q² with a number of flavours."""
    from eko.couplings import Couplings, couplings_mod_ev
    from eko.io.types import EvolutionMethod

    theory, _ = cards(Q0, 4, [3.0])
    running = Couplings(
        couplings=theory.couplings,
        order=(2, 0),
        method=couplings_mod_ev(EvolutionMethod.TRUNCATED),
        masses=[M_CHARM**2, M_BOTTOM**2, M_TOP**2],
        hqm_scheme=theory.heavy.masses_scheme,
        thresholds_ratios=[1.0, 1.0, 1.0],
    )

    def a(Q2: float, flavours: int) -> float:
        return float(np.real(running.a_s(Q2, nf_to=flavours)))

    return a


def nodes(flavours: int) -> tuple[np.ndarray, list[float]]:
    """Returns Chebyshev nodes in s = ln(a_s(start)/a_s(Q)), in which operators are smooth, and their Q [GeV]."""
    from scipy.optimize import brentq

    start, stop, segments = PATCHES[flavours]
    a = coupling()

    def s_of(Q: float) -> float:
        return float(np.log(a(start**2, flavours) / a(Q**2, flavours)))

    s = (1 - np.cos(np.pi * np.arange(segments + 1) / segments)) / 2 * s_of(stop)

    def above(Q: float, point: float) -> float:
        return s_of(Q) - point

    inner = [brentq(above, start, 1.001 * stop, args=(point,)) for point in s[1:-1]]
    return s, [start, *inner, stop]


def evolution(work: Path) -> None:
    """Stores operators at the nodes, in the flavour basis, below and above the bottom threshold."""
    import eko
    from eko.runner import solve

    for flavours, (start, _, _) in PATCHES.items():
        s, scales = nodes(flavours)
        theory, operator = cards(start, flavours, scales[1:])
        path = work / f"eko{flavours}.tar"
        path.unlink(missing_ok=True)
        solve(theory, operator, path)
        with eko.EKO.read(path) as file:
            found = {point[0]: one.operator.copy() for point, one in file.items()}
        known = np.array(list(found))
        nearest = [found[known[np.argmin(np.abs(known - Q**2))]] for Q in scales[1:]]
        np.savez(work / f"evolution{flavours}.npz", s=s, Q=np.array(scales), operators=np.array(nearest))


def coefficients(work: Path) -> None:
    """Stores coefficient functions of every point, at leading and next-to-leading order, on the grid."""
    measured = np.load(work / "measurements.npz")
    for index, one in enumerate(SETS):
        rows = np.flatnonzero(measured["dataset"] == index)
        points = [{key: float(measured[key][i]) for key in ("x", "Q2", "y")} for i in rows]
        numerator = _coefficients(one, one.target, points)
        denominator = _coefficients(one, "proton", points) if one.is_ratio else np.zeros(0)
        np.savez(work / f"coefficients{index}.npz", rows=rows, numerator=numerator, denominator=denominator)
        print(f"{one.name}: {len(rows)} points")


def _coefficients(one: Set, target: str, points: list[dict[str, float]]) -> np.ndarray:
    """Computes coefficients (order, points, flavours, grid). For a structure function y means nothing and is 0."""
    import banana
    import yadism
    import yaml
    from eko import basis_rotation

    if one.observable.startswith("F2"):
        points = [point | {"y": 0.0} for point in points]
    theory = yaml.safe_load((Path(banana.__file__).parent / "data" / "theory_template.yaml").read_text())
    theory |= {"PTO": 1, "PTODIS": 1, "FNS": "ZM-VFNS", "IC": 1, "Q0": Q0, "nf0": 4, "nfref": 5, "Qref": M_Z}
    theory |= {"alphas": ALPHA_S, "alphaqed": ALPHA_EM, "ModEv": "TRN", "NfFF": 4, "MaxNfPdf": 5, "MaxNfAs": 5}
    theory |= {"mc": M_CHARM, "mb": M_BOTTOM, "mt": M_TOP, "Qmc": M_CHARM, "Qmb": M_BOTTOM, "Qmt": M_TOP}
    theory |= {"TMC": int(one.fixed_target), "MP": M_PROTON, "RenScaleVar": False, "FactScaleVar": False}
    observable = {
        "prDIS": one.process,
        "ProjectileDIS": one.projectile,
        "PolarizationDIS": 0.0,
        "TargetDIS": target,
        "PropagatorCorrection": 0,
        "NCPositivityCharge": None,
        "interpolation_xgrid": grid(),
        "interpolation_polynomial_degree": 4,
        "interpolation_is_log": True,
        "observables": {one.observable: points},
    }
    logging.disable(logging.CRITICAL)  # one line a point about numbers that are not there
    output = yadism.run_yadism(theory, observable)
    logging.disable(logging.NOTSET)
    if tuple(output["pids"]) != tuple(basis_rotation.flavor_basis_pids):
        raise ValueError("yadism and eko order flavours differently")
    found = np.zeros((2, len(points), len(output["pids"]), len(grid())))
    for i, result in enumerate(output[one.observable]):
        for order, (values, _) in result.orders.items():
            if order[2] == order[3] == 0:  # no logarithm of scales, which are not varied
                found[order[0], i] += values
    return found


def basis_map() -> np.ndarray:
    """Returns the map from the fitted combinations to flavours, (14, 8): at Q0 c = c̄, and there are no b and t."""
    from eko import basis_rotation

    names, rotation = list(basis_rotation.evol_basis), np.linalg.inv(basis_rotation.rotate_flavor_to_evolution)
    fitted = np.zeros((len(names), len(BASIS)))
    for column, name in enumerate(BASIS):
        fitted[names.index(name), column] = 1
    for copies, of in ((("V15", "V24", "V35"), "V"), (("T24", "T35"), "S")):
        for name in copies:
            fitted[names.index(name), BASIS.index(of)] = 1
    return rotation @ fitted


def tables(work: Path) -> None:
    """Stores coefficients times evolution: predictions are linear in x f at Q0, `FK` of shape (N, 8, grid)."""
    measured, x, a = np.load(work / "measurements.npz"), np.array(grid()), coupling()
    size = len(x)
    start = np.einsum("ab,jk->ajbk", basis_map(), np.diag(1 / x)).reshape(14 * size, len(BASIS) * size)
    propagators, grids = {}, {}
    for flavours in PATCHES:
        with np.load(work / f"evolution{flavours}.npz") as file:
            steps = [one.reshape(14 * size, 14 * size) for one in file["operators"]]
            grids[flavours] = file["s"]
        propagators[flavours] = np.array([start, *(step @ start for step in steps)])
        start = propagators[flavours][-1]  # at next-to-leading order nothing happens at the threshold itself

    def predict(coefficients: np.ndarray, Q2: float) -> np.ndarray:
        flavours = 4 if Q2 < M_BOTTOM**2 else 5
        strength = a(Q2, flavours)
        s = np.log(a(PATCHES[flavours][0] ** 2, flavours) / strength)
        evolved = np.tensordot(_lagrange(s, grids[flavours]), propagators[flavours], 1)
        both = (coefficients[0] + strength * coefficients[1]).ravel()
        return (both @ evolved).reshape(len(BASIS), size)

    numerator, denominator = np.zeros((len(measured["x"]), len(BASIS), size)), []
    for index in range(len(SETS)):
        with np.load(work / f"coefficients{index}.npz") as file:
            parts = dict(file)
        for i, row in enumerate(parts["rows"]):
            numerator[row] = predict(parts["numerator"][:, i], measured["Q2"][row])
            if parts["denominator"].size:
                denominator.append(predict(parts["denominator"][:, i], measured["Q2"][row]))
    np.savez(work / "tables.npz", FK=numerator, FK_den=np.array(denominator), xgrid=x)


def _lagrange(s: float, points: np.ndarray) -> np.ndarray:
    """Returns weights of the polynomial through all nodes."""
    others = [np.delete(points, k) for k in range(len(points))]
    return np.array([np.prod((s - rest) / (one - rest)) for one, rest in zip(points, others, strict=True)])
