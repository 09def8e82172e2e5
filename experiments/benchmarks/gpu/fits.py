"""Trials of the proton fit at the published size, as many as there is time for: `experiments.proton --full`.

Products are exact to float32 here: a tf32 prediction is off by a tenth of its experimental error.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from hypergrad import trials

from ...proton.data import load
from ...proton.run import FULL, make_fit, make_trainer
from ...proton.run import Config as ProtonConfig
from ...proton.trials import Trainer, searchers
from .config import Config

TINY = {"replicas": 2, "steps": 10, "data": "diabetes"}
SHOWN = ("L1", "L2", "L3", "phi2", "failed", "status")


def tasks(config: Config, until: float, variant: str) -> dict[str, Callable[[], dict[str, Any]]]:
    """Returns the first trial, at the centre of the box, then trials along hypergradients."""
    jax.config.update("jax_default_matmul_precision", "highest")
    started = time.time()
    full: Any = ProtonConfig(**(TINY if config.quick else FULL), first_seed=config.seed, out=config.out / "proton")
    measured = load(full.data, full.partition, full.first_seed)
    trainer = make_trainer(full, make_fit(full, measured, config.seed))
    search = searchers(trainer.ranges, full.first(), starts=1, rate=full.hyper_rate, seed=config.seed)["gradient"]
    sizes = {"replicas": full.replicas, "folds": trainer.fit.num_folds, "steps": full.steps, "precision": "highest"}
    sizes["prepared_s"] = round(time.time() - started, 1)
    fits = Fits(trainer, search, search.init(trainer.ranges.space(), jax.random.key(config.seed)), sizes)
    return {f"trial {number}": fits.one for number in range(1, config.sizes.trials + 1)}


@dataclass
class Fits:
    """A search that is taken one trial at a time."""

    trainer: Trainer
    search: trials.AbstractSearcher
    state: trials.SearcherState
    sizes: dict[str, Any]

    def one(self) -> dict[str, Any]:
        """Asks, trains, judges, tells; returns the row."""
        started = time.monotonic()
        self.state, asked = self.search.ask(self.state)
        result = self.trainer.trained(asked, jax.random.key(0))
        self.state = self.search.tell(self.state, asked, result)
        seconds = time.monotonic() - started
        steps = self.sizes["replicas"] * self.sizes["folds"] * self.sizes["steps"]
        work = {
            "gradients": result.gradients,
            "seconds": round(seconds, 3),
            "replica_steps_per_second": steps / seconds,
        }
        measures = {name: result.metrics[name] for name in SHOWN}
        return self.sizes | {"with_hypergradient": asked.needs_hypergradient} | measures | work
