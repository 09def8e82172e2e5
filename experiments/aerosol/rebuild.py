"""Build `aerosol_parcel.npz` again: 24,000 runs of pyrcel's parcel model.

    pip install 'hypergrad-jax[parcel]'
    python -m experiments.aerosol.rebuild --work build/parcel                # all rows
    python -m experiments.aerosol.rebuild --work build/parcel --rows 100     # these only, against the file that ships

Finished blocks of rows stay in the folder --work: a run that was stopped, or one of more rows, goes on from there.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import ceil, erf, sqrt
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from tqdm.auto import tqdm

from ..common.config import Checked, Positive
from ..common.report import text_table
from .data import PARCEL

ROWS, SEED, BLOCK = 24_000, 20211101, 50
# log10 number (cm⁻³), log10 radius (µm), deviation, kappa, log10 updraft (m/s), temperature (K), pressure (Pa),
# accommodation; Silva et al. (2021)
NAMES = ("log10_N", "log10_mu", "sigma_g", "kappa", "log10_V", "T", "P", "accom")
UNITS = ("log10(cm-3)", "log10(um radius)", "1", "1", "log10(m s-1)", "K", "Pa", "1")
LOW = np.array([1, -3, 0, 0, -2, 248, 5e4, 0.1])
HIGH = np.array([4, 1, 1, 1.2, 1, 310, 1.05e5, 1])
OUTPUTS = ("smax_parcel", "actfrac_parcel", "smax_arg2000", "actfrac_arg2000")
BINS, REACH = 32, 4.0  # size bins, over so many logarithms of the deviation to either side of the median
LONGEST, TOLERANCE, MAX_STEPS = 600.0, 1e-4, 3000  # seconds; of the integrator


@dataclass(frozen=True)
class Config(Checked):
    """Rebuild the parcel-model data, and compare them with the file that ships."""

    work: Path  # Folder of finished blocks, and of aerosol_parcel.npz once all rows are there.
    rows: Positive = ROWS  # The first so many rows only, rounded up to whole blocks of 50.
    processes: Positive = 1  # Processes to share the blocks, one thread each.

    def __post_init__(self):
        super().__post_init__()
        if self.rows > ROWS:
            raise ValueError(f"rows is {self.rows}, but there are {ROWS}")


def inputs() -> np.ndarray:
    """Draws an array (24000, 8), a Latin hypercube over the ranges; the deviation is one of two, kappa is not zero."""
    random = np.random.default_rng(SEED)
    within = random.uniform(size=(ROWS, len(LOW)))
    cells = np.stack([random.permutation(ROWS) + 1 for _ in LOW], 1)
    x = LOW + (HIGH - LOW) * (cells - within) / ROWS
    x[:, 2] = np.where(x[:, 2] < 0.5, 1.6, 1.8)
    x[:, 3] = np.maximum(x[:, 3], 1e-4)
    return x


@cache
def parcel_model() -> Callable[..., Any]:
    """Returns a compiled function from a row to (highest supersaturation, activated fraction, its time, status).

    Air rises from saturation with all particles in equilibrium until dS/dt = 0. The activated fraction is the part of
    the lognormal mode with a critical supersaturation, by exact kappa-Köhler theory, below the highest.
    """
    import diffrax
    import jax
    import jax.numpy as jnp
    import optimistix
    from pyrcel.equilibrate import equilibrate_initial_state
    from pyrcel.parcel_aux import parcel_ode_sys

    edges = np.linspace(-REACH, REACH, BINS + 1)
    share = np.diff([erf(edge / sqrt(2)) for edge in edges])
    share, middles = share / share.sum(), (edges[1:] + edges[:-1]) / 2
    # height, pressure, temperature, vapour, liquid, ice, supersaturation, radii
    scales = np.array([1e-2, 1e-2, 1e-3, 1e-8, 1e-8, 1e-4, 1e-4 * TOLERANCE, *[1e-8 * TOLERANCE] * BINS])
    control = diffrax.PIDController(rtol=TOLERANCE, atol=jnp.asarray(scales))
    peak = diffrax.Event(
        lambda t, y, args, **_: parcel_ode_sys(t, y, args)[6],
        root_finder=optimistix.Newton(rtol=1e-4, atol=1e-9),
        direction=False,
    )

    @jax.jit
    def run(row):
        log_number, log_radius, deviation, kappa, log_updraft, temperature, pressure, accommodation = row
        number, radius, spread = 1e6 * 10.0**log_number, 1e-6 * 10.0**log_radius, jnp.log(deviation)
        radii, numbers, kappas = radius * jnp.exp(spread * middles), number * share, jnp.full(BINS, kappa)
        start = equilibrate_initial_state(temperature, 0.0, pressure, radii, kappas, numbers)
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(parcel_ode_sys),
            diffrax.Kvaerno3(),
            0.0,
            LONGEST,
            None,
            start,
            args=(radii, numbers, kappas, accommodation, 10.0**log_updraft),
            stepsize_controller=control,
            saveat=diffrax.SaveAt(t1=True),
            event=peak,
            max_steps=MAX_STEPS,
            throw=False,
        )
        highest = solution.ys[-1][6]
        fraction = activated_fraction(highest, temperature, radius, spread, kappa)
        results = diffrax.RESULTS
        ended = jnp.where(solution.result == results.successful, 1, 2)
        status = jnp.where(solution.result == results.event_occurred, 0, ended)
        return jnp.stack([highest, fraction, solution.ts[-1], status])

    return run


def activated_fraction(highest, temperature, radius, spread, kappa):
    """Returns the part of a mode whose critical supersaturation, by kappa-Köhler theory, is below the highest."""
    import jax
    import jax.numpy as jnp
    from pyrcel.equilibrate import kohler_crit
    from pyrcel.thermo import Seq

    fine = jnp.linspace(-6.0, 6.0, 97)
    dry = radius * jnp.exp(spread * fine)
    wet = jax.vmap(lambda r: kohler_crit(temperature, r, kappa, rtol=1e-8, max_steps=60))(dry)
    critical = jnp.log(jnp.maximum(Seq(wet, dry, temperature, kappa), 1e-12))  # falls with the radius
    smallest = jnp.interp(-jnp.log(jnp.maximum(highest, 1e-12)), -critical, fine, left=-1e3, right=1e3)
    return 0.5 * jax.scipy.special.erfc(smallest / jnp.sqrt(2.0))


def scheme(row: np.ndarray) -> tuple[float, float]:
    """Returns supersaturation and activated fraction by pyrcel's version of Abdul-Razzak and Ghan (2000)."""
    from pyrcel.activation import arg2000

    number, radius, deviation, kappa, updraft, temperature, pressure, accommodation = row
    mode = [10**radius], [deviation], [10**number], [kappa]
    highest, _, fractions = arg2000(10**updraft, temperature, pressure, *mode, accom=float(accommodation))
    return float(highest), float(fractions[0])


def make_block(path: Path) -> None:
    """Runs the rows of one block, whose number is the file's name, and keep their outputs, times and states."""
    run, first = parcel_model(), BLOCK * int(path.stem)
    found = [[*np.asarray(run(row)), *scheme(row)] for row in inputs()[first : first + BLOCK]]
    temporary = path.with_suffix(".tmp")
    with open(temporary, "wb") as file:
        np.save(file, np.array(found))
    os.replace(temporary, path)


def packed(paths: list[Path]) -> dict[str, np.ndarray]:
    """Returns the rows of these blocks as the arrays of the file that ships."""
    found = np.concatenate([np.load(path) for path in paths])
    split = np.zeros(ROWS, np.int8)
    split[-6000:-3000], split[-3000:] = 1, 2  # the rows are in random order
    return {
        "inputs": inputs()[: len(found)].astype(np.float32),
        "input_names": np.array(NAMES),
        "input_units": np.array(UNITS),
        "outputs": found[:, [0, 1, 4, 5]].astype(np.float32),
        "output_names": np.array(OUTPUTS),
        "t_smax": found[:, 2].astype(np.float32),
        "status": found[:, 3].astype(np.int8),
        "split": split[: len(found)],
    }


def compare(made: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Returns one line per array: its differences from the file that ships, relative for supersaturations and times."""
    with np.load(PARCEL) as file:
        shipped = {name: file[name][: len(made["inputs"])] for name in ("inputs", "outputs", "t_smax", "status")}
    pairs = [("inputs", made["inputs"], shipped["inputs"]), ("t_smax", made["t_smax"], shipped["t_smax"])]
    pairs += [(name, made["outputs"][:, i], shipped["outputs"][:, i]) for i, name in enumerate(OUTPUTS)]
    pairs += [("status", made["status"], shipped["status"])]
    lines = []
    for name, ours, theirs in pairs:
        difference = np.abs(ours.astype(float) - theirs)
        if name.startswith(("smax", "t_")):
            difference /= theirs
        median, most, largest = np.quantile(difference, [0.5, 0.99, 1])
        lines.append({"": name, "median": f"{median:.1e}", "99 %": f"{most:.1e}", "largest": f"{largest:.1e}"})
    return lines


def main(config: Config) -> None:
    """Runs what is missing, compare, and write the file if all rows are there."""
    try:
        import pyrcel  # noqa: F401
    except ImportError:
        raise SystemExit("this needs pyrcel: pip install 'hypergrad-jax[parcel]'") from None
    config.work.mkdir(parents=True, exist_ok=True)
    paths = [config.work / f"{block:03d}.npy" for block in range(ceil(config.rows / BLOCK))]
    missing = [path for path in paths if not path.exists()]
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
    started = time.perf_counter()
    with get_context("spawn").Pool(config.processes) as pool:
        for _ in tqdm(pool.imap_unordered(make_block, missing), total=len(missing), unit=" blocks"):
            pass
    if missing:
        print(f"{len(missing) * BLOCK} rows in {time.perf_counter() - started:.0f} s, compilation included")
    made = packed(paths)
    print(f"{len(made['inputs'])} rows against {PARCEL.name}, differences:\n{text_table(compare(made))}")
    if len(paths) * BLOCK == ROWS:
        np.savez_compressed(config.work / PARCEL.name, allow_pickle=False, **made)
        print(f"written to {config.work / PARCEL.name}")


if __name__ == "__main__":
    main(tyro.cli(Config, prog="python -m experiments.aerosol.rebuild"))
