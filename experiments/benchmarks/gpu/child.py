"""One process of a part. Every task gives one row, written as soon as it is there.

`python -m experiments.benchmarks.gpu.child PART VARIANT CONFIG ROWS UNTIL`: CONFIG is a `Config` as JSON, ROWS a
file of JSON lines, UNTIL the Unix time after which no task begins. A task that fails leaves its error as its row.
"""

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax

from ...common.command import keep_programs, num_cores
from ...common.report import as_json
from .config import Config, from_json

MODULES = {
    "device": "device",
    "ensembles": "replicas",
    "cost": "estimators",
    "study": "images",
    "weights": "weights",
    "proton": "fits",
}


def main(part: str, variant: str, config: Config, path: Path, until: float) -> None:
    """Runs the tasks in their order."""
    prepare(config)
    module = importlib.import_module(f".{MODULES[part]}", __package__)
    with open(path, "a") as file:

        def write(line: dict[str, Any]) -> None:
            file.write(json.dumps(as_json(line), allow_nan=False) + "\n")
            file.flush()

        tasks = module.tasks(config, until, variant)
        write({"plan": list(tasks)})
        for name, task in tasks.items():
            if time.time() > until:
                break
            started = time.time()
            try:
                row = task()
            except Exception as error:  # such as too little memory: the next task may do with less
                row = {"error": f"{type(error).__name__}: {str(error)[:500]}"}
            write({"name": name} | row | {"took_s": round(time.time() - started, 2)})


def prepare(config: Config) -> None:
    """Makes every core of a CPU a device, and keeps the compiled programs of anything else."""
    jax.config.update("jax_num_cpu_devices", num_cores())
    jax.config.update("jax_disable_most_optimizations", config.quick)  # compiles in half the time
    if jax.default_backend() != "cpu":
        keep_programs(config.cache)


if __name__ == "__main__":
    part, variant, config, path, until = sys.argv[1:]
    main(part, variant, from_json(json.loads(Path(config).read_text())), Path(path), float(until))
