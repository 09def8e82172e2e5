"""Trials of the proton fit at the published size, as many as there is time for: `experiments.proton --full`.

Products are exact to float32 here: a tf32 prediction is off by a tenth of its experimental error.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from ...proton.data import load
from ...proton.run import FULL, make_estimator
from ...proton.run import Config as ProtonConfig
from ...proton.search import FinishedTrial, Ranges, searches
from ...proton.training import Fit
from ...proton.trials import Trials
from .config import Config

TINY = {"replicas": 2, "steps": 10, "data": "diabetes"}
SHOWN = ("L1", "L2", "L3", "phi2", "failed", "gradients", "status", "seconds")


def tasks(config: Config, until: float, variant: str) -> dict[str, Callable[[], dict[str, Any]]]:
    """The first trial of the box's centre, then trials along hypergradients."""
    jax.config.update("jax_default_matmul_precision", "highest")
    started = time.time()
    full: Any = ProtonConfig(
        **(TINY if config.quick else FULL), starts=1, first_seed=config.seed, out=config.out / "proton"
    )
    measured = load(full.data, full.partition, full.first_seed)
    fit = Fit(measured, full.sizes(final=False), full.first_seed, cross=True)
    maker = Trials(fit, lambda inner: make_estimator(full, inner), (), full.out / "trials")
    ranges = Ranges(full.least_width, (full.most_width,) * len(full.widths), full.steps)
    search = searches(fit.space, ranges, full.first(), full.starts, full.hyper_rate)["gradient"](full.first_seed)
    sizes = {"replicas": full.replicas, "folds": fit.num_folds, "steps": full.steps, "precision": "highest"}
    sizes["prepared_s"] = round(time.time() - started, 1)
    done: list[dict[str, Any]] = []
    numbers = range(1, config.sizes.trials + 1)
    return {f"trial {number}": partial(trial, maker, search, done, sizes) for number in numbers}


def trial(maker: Trials, search, done: list[dict[str, Any]], sizes: dict[str, Any]) -> dict[str, Any]:
    """Ask, train, judge, tell."""
    asked = search.ask()
    found = maker.make(asked, maker.folder / "best.npz", done)
    done.append(found)
    gradient = found["hypergradient"]
    search.tell(FinishedTrial(found["L1"], gradient))
    steps = sizes["replicas"] * sizes["folds"] * sizes["steps"]
    rate = {"replica_steps_per_second": steps / max(found["seconds"], 1e-3)}
    return sizes | {"with_hypergradient": asked.gradient} | {name: found[name] for name in SHOWN} | rate
