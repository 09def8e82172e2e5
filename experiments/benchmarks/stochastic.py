"""Implicit hypergradients of minibatch training: linear solvers at equal cost, against the exact one.

`python -m experiments.benchmarks.stochastic` begins at the solution of a ridge regression, where the exact
hypergradient has a closed form, or at a minimum of a network on digits, where the whole Hessian is solved in double
precision. Adam trains on from there on minibatches at a tiny rate, so that the linear solve alone errs. For every
solver it prints the cosine with the exact hypergradient, the mean over keys, and the cost of the solve in gradients of
a batch, and writes stochastic.json.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree
from scipy.optimize import minimize

import hypergrad as hg

from ..common.data import digits as digit_rows
from ..common.report import environment, write_json
from .problems import cross_entropy, l2

STEPS, CG_STEPS = 200, 10
WARM = 8  # hyper-steps of a warm start, which share the budget
NEWTON = 20  # steps to a minimum of the network, at most


@dataclasses.dataclass(frozen=True)
class Config:
    """Compare linear solvers on minibatches with the exact hypergradient."""

    rows: int = 512  # Rows of the training data, and of the validation data.
    size: int = 32  # Rows of a batch.
    budget: int = 200  # Gradients of a batch that a solve may cost.
    keys: int = 8  # Keys over which the cosine is averaged.
    features: int = 40  # Of the ridge regression.
    hidden: int = 16  # Units of the network.
    log_penalty: float = -4.6  # Of each weight of the network.
    out: Path = Path("results/stochastic")  # Folder of stochastic.json.


class Solved(NamedTuple):
    """A problem on all rows, solved, and its exact hypergradient."""

    problem: hg.BilevelProblem
    params: PyTree
    hparams: PyTree
    exact: np.ndarray


class Method(NamedTuple):
    """A solver: the batches of one product, its estimator, and how often it goes on from its last solution."""

    num_batches: int
    estimator: Any
    hyper_steps: int = 1


def penalty(params: PyTree, hparams: PyTree, data: PyTree, key: Array) -> Array:
    """Returns ½ Σ exp(λ) w²."""
    return jnp.asarray(l2(eqx.filter(params, eqx.is_inexact_array), hparams))


def quadratic(config: Config) -> Solved:
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
    return Solved(hg.BilevelProblem(inner, outer, train, valid), params, hparams, exact)


def network(config: Config) -> Solved:
    """Returns a tanh network on digits with one penalty per weight, at a minimum over all training rows."""
    data, count = digit_rows(), config.rows
    order = np.random.default_rng(0).permutation(len(data.y))
    train, valid = (tuple(data.take(order[k * count : (k + 1) * count])) for k in range(2))
    model = eqx.nn.MLP(64, 10, config.hidden, 1, activation=jnp.tanh, key=jax.random.key(0))
    hparams = jax.tree.map(lambda w: jnp.full_like(w, config.log_penalty), eqx.filter(model, eqx.is_inexact_array))
    outputs = lambda model, hparams, data, key: jax.vmap(model)(data[0])
    fit = lambda z, hparams, data, key: jnp.mean(cross_entropy(z, data[1]))
    outer = lambda model, hparams, data, key: fit(outputs(model, hparams, data, key), hparams, data, key)
    problem = hg.BilevelProblem(hg.GaussNewton(outputs, fit, penalty), outer, train, valid)
    params, exact = solved(problem, model, hparams)
    return Solved(problem, params, hparams, exact)


def solved(problem: hg.BilevelProblem, model: PyTree, hparams: PyTree) -> tuple[PyTree, np.ndarray]:
    """Returns the model at a minimum of the inner loss, and its hypergradient, both taken in double precision.

    **Raises** `ArithmeticError` where no minimum with a positive definite Hessian is found.
    """
    arrays, rest = eqx.partition(model, eqx.is_inexact_array)
    with jax.enable_x64(True):
        key, in_double = jax.random.key(0), lambda tree: jax.tree.map(lambda leaf: jnp.asarray(leaf, float), tree)
        double, (first, back) = in_double(hparams), ravel_pytree(in_double(arrays))
        whole = lambda w: eqx.combine(back(w), rest)
        inner = lambda w: problem.inner_loss(whole(w), double, problem.train, key)
        outer = lambda w: problem.outer_loss(whole(w), double, problem.valid, key)
        w = minimize(jax.jit(jax.value_and_grad(inner)), np.asarray(first), jac=True, method="L-BFGS-B").x
        slope, curvature = jax.jit(jax.grad(inner)), jax.jit(jax.hessian(inner))
        for _ in range(NEWTON):
            w = w - np.linalg.solve(curvature(w), slope(w))
        hessian = np.asarray(curvature(w))
        if not (np.linalg.norm(slope(w)) < 1e-10 and np.linalg.eigvalsh(hessian)[0] > 0):
            raise ArithmeticError("no minimum of the inner loss was found")
        penalties = np.exp(np.asarray(ravel_pytree(double)[0]))
        exact = -penalties * w * np.linalg.solve(hessian, jax.grad(outer)(jnp.asarray(w)))
        found = jax.tree.map(lambda leaf, like: np.asarray(leaf, like.dtype), back(jnp.asarray(w)), arrays)
    return eqx.combine(jax.tree.map(jnp.asarray, found), rest), exact


def methods(inner: hg.AbstractInnerSolver, budget: int) -> dict[str, Method]:
    """Returns the solvers that cost about so many gradients of a batch."""
    many, fewer = max(budget // (CG_STEPS + 2), 1), max(budget // 40, 1)
    gauss_newton, adam = hg.curvature.gauss_newton, hg.curvature.AdamDiagonal()
    damped = hg.linear.LevenbergMarquardt(CG_STEPS)
    implicit = lambda number, solver, **options: Method(number, hg.Implicit(inner, solver, **options))
    warm = hg.linear.SGD(max((budget // WARM - 12) // 2, 1))
    return {
        "CG, one batch": implicit(1, hg.CG(budget - 2)),
        "CG, mean over batches": implicit(many, hg.CG(CG_STEPS)),
        "CG, mean over batches, Gauss-Newton": implicit(many, hg.CG(CG_STEPS), curvature=gauss_newton),
        "CG, mean over batches, Adam's diagonal": implicit(many, hg.CG(CG_STEPS), preconditioner=adam),
        "Levenberg-Marquardt": implicit(fewer, damped),
        "Levenberg-Marquardt, Gauss-Newton": implicit(fewer, damped, curvature=gauss_newton),
        "Neumann, mean over batches": implicit(many, hg.Neumann(CG_STEPS - 4, power_steps=4)),
        "SGD from zero (stocBiO)": implicit(1, hg.linear.SGD(max((budget - 12) // 2, 1))),
        f"SGD, warm, {WARM} hyper-steps in all (AmIGO)": Method(1, hg.HOAG(inner, warm), WARM),
        "Adam's diagonal (SAMA)": implicit(1, hg.linear.Identity(), preconditioner=adam),
    }


def measure(case: Solved, method: Method, config: Config) -> dict[str, float]:
    """Returns the cosine with the exact hypergradient, its spread over keys, and the cost of all solves."""
    batches = hg.Batches(
        case.problem.train, config.size, num_batches=min(method.num_batches, config.rows // config.size)
    )
    problem = eqx.tree_at(lambda p: p.train, case.problem, batches, is_leaf=lambda part: part is case.problem.train)
    first = method.estimator.init(problem, case.params, case.hparams)

    def one(key: Array) -> tuple[Array, Array]:
        state, cost = first, jnp.int32(0)
        for n in range(method.hyper_steps):
            step_key = jax.random.fold_in(key, n)
            estimate, state = method.estimator.step(problem, case.hparams, state, step_key)
            counts = estimate.stats.counts
            cost += counts.hvps + counts.inner_gradients - counts.iterations
        return ravel_pytree(estimate.hypergradient)[0], cost

    found, costs = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(1), config.keys))
    found = np.asarray(found, np.float64)
    cosines = found @ case.exact / np.linalg.norm(found, axis=1) / np.linalg.norm(case.exact)
    return {"cosine": float(cosines.mean()), "spread": float(cosines.std()), "cost": float(np.mean(costs))}


CASES: dict[str, Callable[[Config], Solved]] = {"ridge regression": quadratic, "digits network": network}


def main(config: Config) -> list[dict[str, Any]]:
    """Prints and returns the table, and writes it with what it ran on."""
    inner, table = hg.OptaxSolver(optax.adam(1e-6), STEPS), []
    for name, make in CASES.items():
        case = make(config)
        for solver, method in methods(inner, config.budget).items():
            row = {"problem": name, "solver": solver} | measure(case, method, config)
            table.append(row)
            line = f"cosine {row['cosine']:.4f} ± {row['spread']:.4f}, cost {row['cost']:.0f}"
            print(f"{name:18} {solver:46} {line}", flush=True)
    config.out.mkdir(parents=True, exist_ok=True)
    write_json(config.out / "stochastic.json", {"environment": environment(), "config": config, "rows": table})
    return table


if __name__ == "__main__":
    main(tyro.cli(Config))
