"""Prints versions, devices and precision, and tests every estimator on the default device: the head of a bug report."""

import argparse
import importlib.metadata
import platform
import sys
import time
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

import hypergrad as hg

from .ground.compatibility import miscompiles

PACKAGES = ("jax", "jaxlib", "jaxopt", "optax", "equinox", "numpy", "scipy")
ROUNDING = 1e-3  # largest relative error of an exact hypergradient in float32
NOISE = 0.3  # and of 512 random pairs along three hyperparameters: four standard errors
SHORT_PRODUCT = 1e-4  # relative error of a product of float32 matrices that are rounded to fewer bits
DIFFERENCE = 1e-4  # step of the central differences, in float64


class Subject(NamedTuple):
    """An estimator whose inner solver leaves it no bias, and the relative error that it may have."""

    estimator: Any  # with a field `inner`
    limit: float = ROUNDING


def subjects() -> dict[str, Subject]:
    """Returns every estimator by name."""
    one, few, many = (hg.OptaxSolver(optax.sgd(0.3), steps) for steps in (1, 20, 400))
    momentum = hg.OptaxSolver(hg.MomentumSGD(0.1, 0.9), 20)
    tight = hg.tolerances.exponential(1e-6)
    return {
        "Reverse": Subject(hg.Reverse(few)),
        "Forward": Subject(hg.Forward(few)),
        "Reversible": Subject(hg.Reversible(momentum)),
        "DrMAD, every knot": Subject(hg.DrMAD(few, knots=20)),
        "Greedy, one step": Subject(hg.Greedy(one)),
        "OneStep, one step": Subject(hg.OneStep(one)),
        "Implicit, converged": Subject(hg.Implicit(many, hg.CG(5))),
        "HOAG, converged": Subject(hg.HOAG(many, hg.CG(5), schedule=tight)),
        "ES, smoothed": Subject(hg.ES(few, 512, sigma=0.1), NOISE),
    }


def inner_loss(w: Array, h: Array, data: Any, key: Array) -> Array:
    """Returns |Xw - y|²/2n + ½ Σ exp(h_i) w_i²."""
    return jnp.mean((data[0] @ w - data[1]) ** 2) / 2 + jnp.sum(jnp.exp(h) * w**2) / 2


def outer_loss(w: Array, h: Array, data: Any, key: Array) -> Array:
    """Returns |Xw - y|²/2m."""
    return jnp.mean((data[0] @ w - data[1]) ** 2) / 2


def ridge(dtype: Any) -> tuple[hg.BilevelProblem, Array, Array]:
    """Returns ridge regression of three weights, first weights, and one log penalty per weight."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 3))
    y = x @ np.array([1.0, -2.0, 0.5]) + 0.3 * rng.normal(size=40)
    rows = (jnp.asarray(x, dtype), jnp.asarray(y, dtype))
    train, valid = ([array[part] for array in rows] for part in (slice(20), slice(20, 40)))
    problem = hg.BilevelProblem(inner_loss, outer_loss, train, valid)
    return problem, jnp.ones(3, dtype), jnp.asarray([-1.0, -2.0, -1.5], dtype)


def differences(inner: hg.AbstractInnerSolver) -> np.ndarray:
    """Returns the derivative of the outer loss after training, by central differences in float64."""
    with jax.enable_x64(True):
        problem, params, hparams = ridge(jnp.float64)
        value = lambda h: float(hg.evaluate(inner, problem, params, h, jax.random.key(0)).value)
        steps = DIFFERENCE * np.eye(hparams.size)
        return np.array([(value(hparams + step) - value(hparams - step)) / (2 * DIFFERENCE) for step in steps])


def error_of(subject: Subject) -> float:
    """Returns the relative error of the hypergradient, in float32, against `differences`."""
    problem, params, hparams = ridge(jnp.float32)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the hypergradient is flagged", RuntimeWarning)
        _, found = hg.value_and_hypergrad(problem, subject.estimator)(hparams, params, jax.random.key(0))
    expected = differences(subject.estimator.inner)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def product_error() -> float:
    """Returns the relative error of a product of two float32 matrices on the default device."""
    left, right = np.random.default_rng(0).normal(size=(2, 256, 256)).astype(np.float32)
    found, expected = np.asarray(jnp.asarray(left) @ right, np.float64), left.astype(np.float64) @ right
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def print_setting() -> None:
    """Prints versions, devices and precision."""
    print(f"python {platform.python_version()} on {platform.platform()}")
    packages = [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES]
    print(", ".join([f"hypergrad-jax {hg.__version__}", *packages]))
    kinds = [device.device_kind for device in jax.devices()]
    print(f"devices: {', '.join(f'{kinds.count(kind)} x {kind}' for kind in dict.fromkeys(kinds))}")
    config: Any = jax.config  # its options have no types
    precision = config.jax_default_matmul_precision or "the default of the device"
    print(f"64-bit numbers {'on' if config.jax_enable_x64 else 'off'}, products in {precision}")


def self_test() -> list[str]:
    """Prints one line per test, and returns the names of those that failed."""
    failed = []

    def report(name: str, passed: bool, text: str) -> None:
        print(f"  {name:<24} {'ok    ' if passed else 'FAILED'}  {text}", flush=True)
        if not passed:
            failed.append(name)

    wrong = miscompiles()
    report("known miscompilation", not wrong, "this JAX computes wrong sums" if wrong else "absent")
    error = product_error()
    report("float32 products", error < SHORT_PRODUCT, f"relative error {error:.1e}")
    if error >= SHORT_PRODUCT:
        print("    rounded to fewer bits: jax.config.update('jax_default_matmul_precision', 'highest') is exact")
    for name, subject in subjects().items():
        try:
            error = error_of(subject)
            report(name, error < subject.limit, f"relative error {error:.1e} against differences")
        except Exception as trouble:  # the other estimators are tested all the same
            report(name, False, f"{type(trouble).__name__}: {trouble}")
    return failed


def main(arguments: list[str] | None = None) -> int:
    """Prints the setting and the self-test; returns 1 if a test failed."""
    parser = argparse.ArgumentParser(prog="python -m hypergrad", description=__doc__)
    parser.parse_args(arguments)
    start = time.perf_counter()
    print_setting()
    print("self-test")
    failed = self_test()
    print(f"{len(failed)} failed in {time.perf_counter() - start:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
