"""One small problem for every regime, with the true hypergradient, or that of the smoothed outer loss."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import optax
from jaxtyping import Array, PyTree

import hypergrad as hg
from hypergrad.testing import problems

NODES = 20_001  # of the quadrature that smooths an outer loss
WIDE = 8  # standard deviations, where its range ends


class Regime(NamedTuple):
    """A bilevel problem, how it is trained, and the true hypergradient; `sigma` for evolution strategies."""

    meaning: str
    problem: hg.BilevelProblem
    inner: hg.AbstractInnerSolver
    params: PyTree
    hparams: Array
    truth: np.ndarray
    sigma: float


def ridge() -> problems.Case:
    """Returns ridge regression with 4 log-penalties, on 20 rows."""
    case = problems.ridge(0, 4, 20)
    fit = lambda w, h, data, key: jnp.mean((data["x"] @ w - data["y"]) ** 2) / 2
    penalised = lambda w, h, data, key: fit(w, h, data, key) + jnp.sum(jnp.exp(h) * w**2) / 2
    problem = hg.BilevelProblem(penalised, fit, case.problem.train, case.problem.valid)
    return problems.Case(problem, jnp.zeros(4), case.hparams["log_l2"])


def unrolled(case: problems.Case, inner: hg.OptaxSolver, key: Array) -> np.ndarray:
    """Returns the derivative of the outer loss after training, by `jax.grad` through a plain scan."""
    optimiser, problem = inner.options["opt"], case.problem

    def trained(h: Array) -> Array:
        def body(carry: PyTree, t: Array) -> tuple[PyTree, None]:
            w, state = carry
            gradient = jax.grad(problem.inner_loss)(w, h, problem.train, jax.random.fold_in(key, t))
            updates, state = optimiser.update(gradient, state, w)
            return (optax.apply_updates(w, updates), state), None

        start = case.params, optimiser.init(case.params)
        (w, _), _ = jax.lax.scan(body, start, jnp.arange(inner.num_steps))
        return problem.outer_loss(w, h, problem.valid, key)

    return jax.grad(trained)(case.hparams)


def along(meaning: str, optimiser: optax.GradientTransformation, num_steps: int) -> Regime:
    """Returns ridge regression after some steps of an optimiser."""
    case, inner = ridge(), hg.OptaxSolver(optimiser, num_steps)
    truth = np.asarray(unrolled(case, inner, jax.random.key(0)))
    return Regime(meaning, case.problem, inner, case.params, case.hparams, truth, 0.05)


def converged() -> Regime:
    """Returns ridge regression trained to its minimum; the truth is its closed form."""
    case, rows = ridge(), problems.ridge(0, 4, 20)
    exact = problems.ridge_gradient(rows.problem.train, rows.problem.valid, case.hparams) - 0.1 * case.hparams
    inner = hg.OptaxSolver(optax.sgd(0.3), 400)
    return Regime("ridge, 400 steps to the minimum", case.problem, inner, case.params, case.hparams, exact, 0.05)


def chaotic() -> Regime:
    """Returns the logistic map x <- r x (1 - x) at r = 3.9, smoothed over 0.01; the truth is a quadrature."""
    steps, sigma = 12, 0.01

    def optimiser(r: Array) -> optax.GradientTransformation:
        update = lambda updates, state, x: (r * x * (1 - x) - x, state)
        return optax.GradientTransformation(lambda x: optax.EmptyState(), update)

    def last(r: np.ndarray) -> np.ndarray:
        x = np.full_like(r, 0.3)
        for _ in range(steps):
            x = r * x * (1 - x)
        return x

    nothing = lambda x, r, data, key: 0 * x
    problem = hg.BilevelProblem(nothing, lambda x, r, data, key: x, jnp.zeros(1), jnp.zeros(1))
    truth = smoothed(last, 3.9, sigma)
    meaning = f"logistic map at 3.9, {steps} steps, smoothed over {sigma}"
    return Regime(meaning, problem, hg.OptaxSolver(optimiser, steps), jnp.asarray(0.3), jnp.asarray(3.9), truth, sigma)


def smoothed(function: Callable[[np.ndarray], np.ndarray], at: float, sigma: float) -> np.ndarray:
    """Returns the derivative of E F(λ + ε), E[ε F(λ + ε)]/σ², by the trapezoidal rule."""
    eps, step = np.linspace(-WIDE * sigma, WIDE * sigma, NODES, retstep=True)
    density = np.exp(-0.5 * (eps / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi))
    return np.asarray(np.sum(density * eps * function(at + eps)) * step / sigma**2)


def non_smooth() -> Regime:
    """Returns the lasso by proximal gradient descent; the truth is the closed form on the support."""
    case = problems.ridge(3, 6, 20)
    train, valid = case.problem.train, case.problem.valid
    fit = lambda w, h, data, key: jnp.mean((data["x"] @ w - data["y"]) ** 2) / 2
    prox = lambda w, h, scaling: jaxopt.prox.prox_lasso(w, jnp.exp(h), scaling)
    gram = train["x"].T @ train["x"] / len(train["y"])
    options: dict[str, Any] = {"prox": prox, "stepsize": float(1 / np.linalg.eigvalsh(gram)[-1]), "maxiter": 600}
    inner = hg.JaxoptSolver(jaxopt.ProximalGradient, **options)
    problem, h = hg.BilevelProblem(fit, fit, train, valid), jnp.asarray(-1.0)
    w = np.asarray(hg.evaluate(inner, problem, jnp.zeros(6), h, jax.random.key(0)).params)
    on = w != 0
    by_w = valid["x"].T @ (valid["x"] @ w - valid["y"]) / len(valid["y"])
    truth = -np.exp(-1.0) * np.sign(w[on]) @ np.linalg.solve(gram[np.ix_(on, on)], by_w[on])
    meaning = f"lasso, {on.sum()} of 6 weights not zero, 600 proximal steps"
    return Regime(meaning, problem, inner, jnp.zeros(6), h, np.asarray(truth), 0.02)


def noisy() -> Regime:
    """Returns ridge regression on minibatches of 4 rows; the truth is the mean of 4,096 exact derivatives."""
    case = ridge()
    rows = {name: case.problem.train[name] for name in ("x", "y")}
    inner_loss = case.problem.inner_loss
    batched = lambda w, h, data, key: inner_loss(w, h, hg.minibatch(key, data, 4), key)
    case = problems.Case(
        hg.BilevelProblem(batched, case.problem.outer_loss, rows, case.problem.valid), case.params, case.hparams
    )
    inner = hg.OptaxSolver(optax.sgd(0.1), 40)
    keys = jax.random.split(jax.random.key(1), 4096)
    truth = np.mean(jax.jit(jax.vmap(lambda key: unrolled(case, inner, key)))(keys), 0)
    meaning = "ridge on minibatches of 4 rows, 40 steps, mean over keys"
    return Regime(meaning, case.problem, inner, case.params, case.hparams, truth, 0.05)


def discrete() -> Regime:
    """Returns logistic regression judged by its share of wrong labels, smoothed over 1; the truth is a quadrature."""
    case, sigma = problems.logistic(2, 4, 40), 1.0
    train = case.problem.train
    errors = lambda w, h, data, key: jnp.mean((data["x"] @ w > 0) != (data["y"] > 0.5))
    problem = hg.BilevelProblem(problems.logistic_inner, errors, train, case.problem.valid)
    inner, w = hg.OptaxSolver(optax.sgd(0.5), 100), jnp.zeros(4)
    value = lambda h: hg.evaluate(inner, problem, w, h, jax.random.key(0)).value
    share = lambda h: np.asarray(jax.lax.map(value, jnp.asarray(h), batch_size=1000))
    meaning = f"share of wrong labels of logistic regression, smoothed over {sigma}"
    return Regime(meaning, problem, inner, w, jnp.asarray(0.0), smoothed(share, 0.0, sigma), sigma)


REGIMES: dict[str, Callable[[], Regime]] = {
    "smooth, converged": converged,
    "short unroll": lambda: along("ridge, 5 steps", optax.sgd(0.1, 0.9), 5),
    "long unroll": lambda: along("ridge, 1,000 short steps", optax.sgd(0.003), 1000),
    "chaotic": chaotic,
    "non-smooth": non_smooth,
    "noisy": noisy,
    "discrete": discrete,
}
