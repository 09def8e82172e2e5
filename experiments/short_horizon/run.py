"""Greedy, constant and far-sighted learning rates on the noisy quadratic."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.optimize import minimize_scalar
from tqdm.auto import tqdm

import hypergrad as hg

from ..common.config import Common, Out, Positive, PositiveFloat, Seeds
from ..common.report import save, spread_table
from . import model
from .plots import draw

QUICK = {"seeds": 2, "hyper_steps": 300, "particles": 300}
START = -1.0  # log learning rate of every step before it is learned
REFERENCE = {"greedy, closed form": 0.2555, "best constant": 0.1680}
SOURCE = "values for the default curvatures and steps: independent float64 evaluation of the recursion of Wu et al."


@dataclass(frozen=True)
class Config(Common):
    """Show the short-horizon bias: a learning-rate schedule chosen one step ahead is worse than one constant rate.

    On a noisy quadratic the expected loss after any schedule is known in closed form. The schedule that is best one
    step ahead (greedy) is compared with the best constant rate and with the schedule learned by reverse mode through
    the whole run; then hg.Greedy and hg.Reverse learn the same schedules from simulated SGD.

    After Wu, Ren, Liao and Grosse (2018), section 2. Two dimensions instead of their many; numbers are our own.
    """

    curvatures: tuple[float, ...] = (1.0, 0.1)
    """Curvature of each direction."""
    starts: tuple[float, ...] = (5.0, 50.0)
    """E[w²] of each direction at the start."""
    noise: PositiveFloat = 1.0
    """Variance of the gradient noise, in units of the curvature squared."""
    num_steps: Positive = 50
    """Training steps, and learning rates to be learned."""
    hyper_steps: Positive = 1000
    """Steps of Adam on the log learning rates."""
    hyper_lr: PositiveFloat = 0.03
    """Learning rate of that Adam."""
    particles: Positive = 1000
    """Independent weights in the simulation; the outer loss is their mean."""
    seeds: Seeds = 5
    out: Out = Path("results/short_horizon")

    def __post_init__(self):
        super().__post_init__()
        if not self.curvatures or len(self.curvatures) != len(self.starts):
            raise ValueError(f"starts must have one entry per curvature ({len(self.curvatures)}), got {self.starts}")
        for name in ("curvatures", "starts"):
            if min(getattr(self, name)) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    def quadratic(self) -> model.Quadratic:
        """The problem, in the precision that JAX is set to."""
        return model.Quadratic(*(jnp.asarray(value, float) for value in (self.curvatures, self.noise, self.starts)))


def best_constant(config: Config) -> float:
    """The constant rate with the smallest final loss, to eight digits; beyond 2/max(c) training diverges."""
    quadratic = config.quadratic()
    final = jax.jit(lambda rate: model.losses_of(quadratic, jnp.full(config.num_steps, rate))[-1])
    limit = 2 / max(config.curvatures)
    grid = np.linspace(0, limit, 202)[1:-1]
    middle = int(np.argmin([final(rate) for rate in grid]))
    around = (grid[max(middle - 1, 0)], grid[min(middle + 1, len(grid) - 1)])
    found = minimize_scalar(lambda rate: float(final(rate)), bounds=around, method="bounded", options={"xatol": 1e-8})
    return float(found.x)


def learn(config: Config, search: hg.GradientSearch, problem, params, seed: int, advance: Callable[[int], Any]):
    """Learn the log rates; the schedule after every hyper-step, of shape (hyper_steps, num_steps)."""
    state, history = hg.run(
        search,
        problem,
        search.init(problem, params, jnp.full(config.num_steps, START)),
        key=jax.random.key(seed),
        budget=config.num_steps * config.hyper_steps,
        chunk=min(50, config.hyper_steps),
        callback=lambda state, record: advance(len(record.value)) and None,
    )
    return np.concatenate([history.hparams, np.asarray(state.hparams)[None]])[1:]


def schedules(config: Config) -> list[dict[str, Any]]:
    """Every method's schedule with its exact expected losses."""
    quadratic = config.quadratic()
    adam, solver = optax.adam(config.hyper_lr), hg.OptaxSolver(model.scheduled_sgd, config.num_steps)
    in_expectation = hg.OptaxSolver(partial(model.follow_moments, quadratic), config.num_steps)
    expected, simulated = model.expected_problem(quadratic), model.simulated_problem(quadratic)
    estimators = {
        "greedy, hg.Greedy": hg.Greedy(solver, decay=1.0, warm_start=False, check=None),
        "learned, hg.Reverse": hg.Reverse(solver),
    }
    found: list[dict[str, Any]] = [
        {"method": "greedy, closed form", "rates": model.greedy_schedule(quadratic, config.num_steps)[0]},
        {"method": "best constant", "rates": np.full(config.num_steps, best_constant(config))},
    ]
    with tqdm(total=(1 + len(estimators) * config.seeds) * config.hyper_steps, unit=" hyper-steps") as bar:
        exact = hg.GradientSearch(hg.Reverse(in_expectation), adam)
        path = learn(config, exact, expected, quadratic.start, 0, bar.update)
        found.append({"method": "learned, expected loss", "rates": np.exp(path[-1]), "path": path})
        for name, estimator in estimators.items():
            search = hg.GradientSearch(estimator, adam)
            for seed in range(config.seeds):
                bar.set_postfix_str(f"{name}, seed {seed}")
                weights = model.particles(quadratic, config.particles, jax.random.key(config.seeds + seed))
                path = learn(config, search, simulated, weights, seed, bar.update)
                found.append({"method": name, "seed": seed, "rates": np.exp(path[-1]), "path": path})
    losses = jax.jit(partial(model.losses_of, quadratic))
    for line in found:
        line["losses"] = np.asarray(losses(jnp.asarray(line["rates"])))
    return found


def main(config: Config) -> dict[str, Any]:
    """Run, write everything, return the summary."""
    found = schedules(config)
    runs = [
        {
            "method": line["method"],
            "seed": line.get("seed"),
            "final_loss": float(line["losses"][-1]),
            "first_rate": float(line["rates"][0]),
            "largest_rate": float(np.max(line["rates"])),
            "last_rate": float(line["rates"][-1]),
        }
        for line in found
    ]
    is_default = all(getattr(config, name) == getattr(Config(), name) for name in ("curvatures", "starts", "noise"))
    reference = REFERENCE if is_default and config.num_steps == Config.num_steps else {}
    numbers = ("final_loss", "first_rate", "largest_rate", "last_rate")
    table = [
        line | {"reference": reference.get(line["method"], "-")} for line in spread_table(runs, ("method",), numbers)
    ]
    history = [
        {"method": line["method"], "seed": line.get("seed"), "step": step + 1, "rate": rate, "expected_loss": loss}
        for line in found
        for step, (rate, loss) in enumerate(zip(line["rates"].tolist(), line["losses"].tolist(), strict=True))
    ]
    title = f"Expected loss above the noise floor after {config.num_steps} steps; reference: {SOURCE}"
    summary = save(config, runs, table, history, title)
    draw(config, found)
    return summary
