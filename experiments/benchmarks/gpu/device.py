"""The device, its ceilings, and the precision of its products."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import hypergrad as hg

from ...common.command import num_cores
from ...common.report import environment
from .. import bare, problems
from ..cost import training
from ..measure import agreement, arguments, exact, flat, median_seconds
from .config import Config

PRECISIONS = ("default", "highest")


def tasks(config: Config, until: float, variant: str) -> dict[str, Callable[[], dict[str, Any]]]:
    """Returns one row for the device, one for its bandwidth, two for products, two for hypergradients."""
    found: dict[str, Callable[[], dict[str, Any]]] = {"environment": describe, "copy": partial(copy, config)}
    found |= {f"product, {name}": partial(product, config, name) for name in PRECISIONS}
    case = problems.mlp(config.seed, config.sizes.horizon)
    cache: dict[str, np.ndarray] = {}
    return found | {f"hypergradient, {name}": partial(hypergradient, case, cache, name) for name in PRECISIONS}


def describe() -> dict[str, Any]:
    """Returns the device, driver, versions, and power at rest."""
    more = {"cores": num_cores(), "matmul_precision": str(jax.config.jax_default_matmul_precision)}
    return environment() | nvml() | more


def nvml() -> dict[str, Any]:
    """Returns the answer of NVML, `None` where it is not there."""
    try:
        import pynvml

        pynvml.nvmlInit()
        card = pynvml.nvmlDeviceGetHandleByIndex(0)
        jax.block_until_ready(jnp.zeros(1) + 1)
        time.sleep(1.0)
        return {
            "driver": _text(pynvml.nvmlSystemGetDriverVersion()),
            "card": _text(pynvml.nvmlDeviceGetName(card)),
            "card_bytes": pynvml.nvmlDeviceGetMemoryInfo(card).total,
            "idle_watts": pynvml.nvmlDeviceGetPowerUsage(card) / 1e3,
        }
    except Exception:  # no package, no card
        return dict.fromkeys(("driver", "card", "card_bytes", "idle_watts"))


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def copy(config: Config) -> dict[str, Any]:
    """Measures the bytes read and written per second by an addition to a large array."""
    array = jnp.ones(16 * config.sizes.product**2, jnp.float32)
    seconds = median_seconds(partial(jax.jit(lambda a: a + 1), array), config.sizes.rounds)
    return {"seconds": seconds, "gigabytes_per_second": 2 * array.nbytes / seconds / 1e9}


def product(config: Config, precision: str) -> dict[str, Any]:
    """Measures the rate of a float32 matrix product, and its error against float64."""
    n = config.sizes.product
    a, b = np.random.default_rng(config.seed).normal(size=(2, n, n)).astype(np.float32)
    call = partial(jax.jit(partial(jnp.matmul, precision=precision)), jnp.asarray(a), jnp.asarray(b))
    seconds, some = median_seconds(call, config.sizes.rounds), slice(0, 256)
    right = a[some].astype(float) @ b.astype(float)
    error = np.linalg.norm(np.asarray(call(), float)[some] - right) / np.linalg.norm(right)
    rate = 2 * n**3 / seconds / 1e12
    return {"precision": precision, "seconds": seconds, "teraflops_per_second": rate, "relative_error": float(error)}


def hypergradient(case: problems.Benchmark, cache: dict[str, np.ndarray], precision: str) -> dict[str, Any]:
    """Measures the error of `Reverse`, and of the same recursion written by hand, against float64."""
    right = cache["exact"] if "exact" in cache else cache.setdefault("exact", exact(case))
    with jax.default_matmul_precision(precision):
        call = hg.value_and_hypergrad(case.problem, hg.Reverse(training(case)))
        ours = flat(call(case.hparams, case.params, jax.random.key(0))[1])
        by_hand = flat(jax.jit(bare.reverse(case))(*arguments(case))[1])
    return {
        "precision": precision,
        "steps": case.num_steps,
        **agreement(ours, right),
        "bare_relative_error": agreement(by_hand, right)["relative_error"],
    }
