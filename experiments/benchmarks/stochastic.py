"""Implicit hypergradients of minibatch training: linear solvers at equal cost, against the exact one.

`python -m experiments.benchmarks.stochastic` begins at the solution of a ridge regression, where the exact
hypergradient has a closed form. Adam trains on from there on minibatches at a tiny rate, so that the linear solve alone
errs. For every solver it prints the cosine with the exact hypergradient, the mean over keys, and the cost of the solve
in gradients of a batch.
"""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jaxtyping import Array, PyTree

import hypergrad as hg

from .problems import l2

STEPS, CG_STEPS = 200, 10


@dataclasses.dataclass(frozen=True)
class Config:
    """Compare linear solvers on minibatches with the exact hypergradient."""

    rows: int = 512  # Rows of the training data, and of the validation data.
    size: int = 32  # Rows of a batch.
    budget: int = 200  # Gradients of a batch that a solve may cost.
    keys: int = 8  # Keys over which the cosine is averaged.
    features: int = 40  # Of the ridge regression.


class Case(NamedTuple):
    """A problem on all rows, solved, and its exact hypergradient."""

    problem: hg.BilevelProblem
    params: PyTree
    hparams: PyTree
    exact: np.ndarray


class Method(NamedTuple):
    """A solver: the batches of one product, and its estimator."""

    num_batches: int
    estimator: Any


def penalty(params: PyTree, hparams: PyTree, data: PyTree, key: Array) -> Array:
    """Returns ½ Σ exp(λ) w²."""
    return jnp.asarray(l2(eqx.filter(params, eqx.is_inexact_array), hparams))


def quadratic(config: Config) -> Case:
    """Returns ridge regression whose features differ in size by a factor of ten; the Hessian of a batch is singular but
    for the penalty."""
    rng = np.random.default_rng(0)
    scale = np.geomspace(1, 0.1, config.features)
    truth = rng.normal(size=config.features) / scale

    def rows() -> tuple[np.ndarray, np.ndarray]:
        x = (rng.normal(size=(config.rows, config.features)) * scale).astype("float32")
        return x, (x @ truth + rng.normal(size=config.rows)).astype("float32")

    half = lambda z, hparams, data, key: jnp.mean((z - data[1]) ** 2) / 2
    inner = hg.GaussNewton(lambda w, hparams, data, key: data[0] @ w, half, penalty)
    outer = lambda w, hparams, data, key: half(data[0] @ w, hparams, data, key)
    (x, y), (u, z) = train, valid = rows(), rows()
    hparams = np.full(config.features, -3.0)
    hessian = x.T @ x / len(y) + np.diag(np.exp(hparams))
    w = np.linalg.solve(hessian, x.T @ y / len(y))
    exact = -np.exp(hparams) * w * np.linalg.solve(hessian, u.T @ (u @ w - z) / len(z))
    params, hparams = jnp.asarray(w, jnp.float32), jnp.asarray(hparams, jnp.float32)
    return Case(hg.BilevelProblem(inner, outer, train, valid), params, hparams, exact)


def methods(inner: hg.AbstractInnerSolver, budget: int) -> dict[str, Method]:
    """Returns the solvers that cost about so many gradients of a batch."""
    many, fewer = max(budget // (CG_STEPS + 2), 1), max(budget // 40, 1)
    gauss_newton, adam = hg.curvature.gauss_newton, hg.curvature.AdamDiagonal()
    damped = hg.linear.LevenbergMarquardt(CG_STEPS)
    implicit = lambda number, solver, **options: Method(number, hg.Implicit(inner, solver, **options))
    return {
        "CG, one batch": implicit(1, hg.CG(budget - 2)),
        "CG, mean over batches": implicit(many, hg.CG(CG_STEPS)),
        "CG, mean over batches, Gauss-Newton": implicit(many, hg.CG(CG_STEPS), curvature=gauss_newton),
        "CG, mean over batches, Adam's diagonal": implicit(many, hg.CG(CG_STEPS), preconditioner=adam),
        "Levenberg-Marquardt": implicit(fewer, damped),
        "Levenberg-Marquardt, Gauss-Newton": implicit(fewer, damped, curvature=gauss_newton),
        "Neumann, mean over batches": implicit(many, hg.Neumann(CG_STEPS - 4, power_steps=4)),
        "SGD from zero (stocBiO)": implicit(1, hg.linear.SGD(max((budget - 12) // 2, 1))),
        "Adam's diagonal (SAMA)": implicit(1, hg.linear.Identity(), preconditioner=adam),
    }


def measure(case: Case, method: Method, config: Config) -> dict[str, float]:
    """Returns the cosine with the exact hypergradient, its spread over keys, and the cost of all solves."""
    batches = hg.Batches(
        case.problem.train, config.size, num_batches=min(method.num_batches, config.rows // config.size)
    )
    problem = eqx.tree_at(lambda p: p.train, case.problem, batches, is_leaf=lambda part: part is case.problem.train)
    state = method.estimator.init(problem, case.params, case.hparams)

    def one(key: Array) -> tuple[Array, Array]:
        estimate, _ = method.estimator.step(problem, case.hparams, state, key)
        counts = estimate.stats.counts
        return estimate.hypergradient, counts.hvps + counts.inner_gradients - counts.iterations

    found, costs = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(1), config.keys))
    found = np.asarray(found, np.float64)
    cosines = found @ case.exact / np.linalg.norm(found, axis=1) / np.linalg.norm(case.exact)
    return {"cosine": float(cosines.mean()), "spread": float(cosines.std()), "cost": float(np.mean(costs))}


def main(config: Config) -> list[dict[str, Any]]:
    """Prints and returns the table."""
    case, inner, table = quadratic(config), hg.OptaxSolver(optax.adam(1e-6), STEPS), []
    for solver, method in methods(inner, config.budget).items():
        row = {"solver": solver} | measure(case, method, config)
        table.append(row)
        print(f"{solver:46} cosine {row['cosine']:.4f} ± {row['spread']:.4f}, cost {row['cost']:.0f}", flush=True)
    return table


if __name__ == "__main__":
    main(tyro.cli(Config))
