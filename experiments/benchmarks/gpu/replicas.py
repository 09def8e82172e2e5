"""Replicas of the proton network per second, with the energy that they take: `experiments.benchmarks.ensembles`."""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax

import ensembles as ens

from .. import ensembles as benchmark
from ..measure import with_energy
from .config import Config


def tasks(config: Config, until: float, variant: str) -> dict[str, Callable[[], dict[str, Any]]]:
    """Returns ensembles of every size; a network that is not stacked; the largest at highest precision."""
    training = benchmark.programs(benchmark.Config(steps=config.sizes.steps))
    most = max(config.replicas)
    models, data = benchmark.setting(config.seed, most)
    timed = partial(train, config, (training, models, data))
    found = {f"{num} together": partial(timed, num) for num in config.replicas}
    if jax.device_count() > 1:
        many = [num for num in config.replicas if num >= jax.device_count()]
        found |= {f"{num} over devices": partial(timed, num, spread=True) for num in many}
    found |= {"1 not stacked": partial(timed, None)}
    return found | {f"{most} together, highest": partial(timed, most, precision="highest")}


def train(config, shared, num: int | None, precision: str = "default", spread: bool = False):
    """Measures time, energy and memory of training; `num` is None for a network that is not stacked."""
    training, models, (grid, linear, targets) = shared
    if num is None:
        args = ens.replica(models, 0), (grid, linear, targets[0])
        inner, loss = training[benchmark.ONE], benchmark.loss
    else:
        some = jax.tree.map(lambda leaf: leaf[:num] if eqx.is_array(leaf) else leaf, (models, targets))
        common: tuple = (grid, linear)
        if spread:
            mesh = ens.replica_mesh()
            some, common = ens.shard_replicas(some, mesh), ens.replicate_on_devices(common, mesh)
        inner, loss, args = training[benchmark.ALL], benchmark.LIFTED, (some[0], (*common, some[1]))
    with jax.default_matmul_precision(precision):
        call, held = benchmark.trainer(inner, loss, *args)
        row = with_energy(partial(call, *args), config.sizes.rounds, config.sizes.measured)
    count, steps = num or 1, config.sizes.steps
    per_step = None if row["joules"] is None else 1e3 * row["joules"] / count / steps
    return {
        "replicas": count,
        "stacked": num is not None,
        "devices": jax.device_count() if spread else 1,
        "precision": precision,
        "steps": steps,
        "replica_steps_per_second": count * steps / row["seconds"],
        "planned_bytes": held,
        "millijoules_per_replica_step": per_step,
        "joules_per_replica": None if per_step is None else per_step * steps / 1e3,
        "load": os.getloadavg()[0],
        **row,
    }
