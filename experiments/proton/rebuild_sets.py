"""The data sets of `rebuild`, their cuts and folds."""

from typing import Any, Literal, NamedTuple

M_PROTON = 0.938
MIN_Q2, MAX_Q2, MIN_W2 = 3.49, 30_000.0, 12.5  # GeV²
BASIS = ("S", "g", "V", "V3", "V8", "T3", "T8", "T15")


class Set(NamedTuple):
    """A data set of nnpdf-data, its fold in three partitions (-1: always trained on), and what yadism is asked for."""

    name: str
    folds: tuple[int, int, int]  # nnpdf, balanced, fixedtarget
    observable: str
    process: Literal["EM", "NC"]
    projectile: Literal["electron", "positron"]
    target: Literal["proton", "isoscalar"]

    @property
    def fixed_target(self) -> bool:
        """False for HERA, a collider: no target-mass corrections."""
        return not self.name.startswith("HERA")

    @property
    def is_ratio(self) -> bool:
        """True for deuteron over proton."""
        return self.name == "NMC_NC_NOTFIXED_EM-F2"


def _hera(energy: int, lepton: str, folds: tuple[int, int, int]) -> Set:
    projectile: Any = "positron" if lepton == "EP" else "electron"
    return Set(f"HERA_NC_{energy}GEV_{lepton}-SIGMARED", folds, "XSHERANC_total", "NC", projectile, "proton")


SETS = (
    Set("BCDMS_NC_NOTFIXED_P_EM-F2", (1, 1, 0), "F2_total", "EM", "electron", "proton"),
    Set("BCDMS_NC_NOTFIXED_D_EM-F2", (-1, 3, 1), "F2_total", "EM", "electron", "isoscalar"),
    Set("NMC_NC_NOTFIXED_EM-F2", (2, 2, 3), "F2_total", "EM", "electron", "isoscalar"),
    Set("NMC_NC_NOTFIXED_P_EM-SIGMARED", (0, 0, 2), "XSHERANCAVG_total", "EM", "electron", "proton"),
    Set("SLAC_NC_NOTFIXED_P_EM-F2", (-1, 0, 1), "F2_total", "EM", "electron", "proton"),
    Set("SLAC_NC_NOTFIXED_D_EM-F2", (-1, 2, 2), "F2_total", "EM", "electron", "isoscalar"),
    _hera(318, "EP", (1, -1, -1)),
    _hera(318, "EM", (-1, 3, -1)),
    _hera(300, "EP", (3, 3, -1)),
    _hera(251, "EP", (2, 2, -1)),
    _hera(225, "EP", (0, 0, -1)),
)
