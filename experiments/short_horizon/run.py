"""Greedy, constant and far-sighted learning rates on the noisy quadratic."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.optimize import minimize_scalar

import hypergrad as hg

from ..common.cells import grid, rows, run_cells
from ..common.config import Common, Out, Positive, PositiveFloat, Seeds, Series
from ..common.figures import COLOURS, band, figure
from ..common.report import Row, grouped, save, spread_table
from . import model

QUICK = {"seeds": 2, "hyper_steps": 300, "particles": 300}
START = -1.0  # log learning rate of every step before it is learned
REFERENCE = {"greedy, closed form": 0.2555, "best constant": 0.1680}
EXACT = ("greedy, closed form", "best constant", "learned, expected loss")
SIMULATED = ("greedy, hg.Greedy", "learned, hg.Reverse")
SOURCE = "values for the default curvatures and steps: independent float64 evaluation of the recursion of Wu et al."


@dataclass(frozen=True)
class Config(Common):
    """Show the short-horizon bias: a learning-rate schedule chosen one step ahead is worse than one constant rate.

    On a noisy quadratic the expected loss after any schedule is known in closed form. The schedule that is best one
    step ahead (greedy) is compared with the best constant rate and with the schedule learned by reverse mode through
    the whole run; then hg.Greedy and hg.Reverse learn the same schedules from simulated SGD.

    After Wu, Ren, Liao and Grosse (2018), section 2. Two dimensions instead of their many; numbers are our own.
    """

    curvatures: Series[PositiveFloat] = (1.0, 0.1)  # Curvature of each direction.
    starts: Series[PositiveFloat] = (5.0, 50.0)  # E[w²] of each direction at the start.
    noise: PositiveFloat = 1.0  # Variance of the gradient noise, in units of the curvature squared.
    num_steps: Positive = 50  # Training steps, and learning rates to be learned.
    hyper_steps: Positive = 1000  # Steps of Adam on the log learning rates.
    hyper_lr: PositiveFloat = 0.03  # Learning rate of that Adam.
    particles: Positive = 1000  # Independent weights in the simulation; the outer loss is their mean.
    seeds: Seeds = 5
    out: Out = Path("results/short_horizon")

    def __post_init__(self):
        super().__post_init__()
        if len(self.curvatures) != len(self.starts):
            raise ValueError(f"starts must have one entry per curvature ({len(self.curvatures)}), got {self.starts}")

    def quadratic(self) -> model.Quadratic:
        """Returns the problem, in the precision that JAX is set to."""
        return model.Quadratic(*(jnp.asarray(value, float) for value in (self.curvatures, self.noise, self.starts)))


def best_constant(config: Config) -> float:
    """Returns the constant rate with the smallest final loss, to eight digits; beyond 2/max(c) training diverges."""
    quadratic = config.quadratic()
    final = jax.jit(lambda rate: model.losses_of(quadratic, jnp.full(config.num_steps, rate))[-1])
    limit = 2 / max(config.curvatures)
    grid = np.linspace(0, limit, 202)[1:-1]
    middle = int(np.argmin([final(rate) for rate in grid]))
    around = (grid[max(middle - 1, 0)], grid[min(middle + 1, len(grid) - 1)])
    found = minimize_scalar(lambda rate: float(final(rate)), bounds=around, method="bounded", options={"xatol": 1e-8})
    return float(found.x)


def learn(
    search: hg.GradientSearch, problem: hg.BilevelProblem, state: hg.SearchState, seed: int, budget: int
) -> np.ndarray:
    """Returns the learning rates after every hyper-step, of shape (hyper_steps, num_steps)."""
    state, history = hg.run(search, problem, state, key=jax.random.key(seed), budget=budget, chunk=50)
    return np.exp(np.concatenate([history.hparams, np.asarray(state.hparams)[None]])[1:])


def main(config: Config) -> dict[str, Any]:
    """Runs what is missing, writes everything, returns the summary."""
    quadratic, solver = config.quadratic(), hg.OptaxSolver(model.scheduled_sgd, config.num_steps)
    in_expectation = hg.OptaxSolver(partial(model.follow_moments, quadratic), config.num_steps)
    simulated = model.simulated_problem(quadratic)
    losses = jax.jit(partial(model.losses_of, quadratic))
    finals = jax.jit(jax.vmap(lambda rates: model.losses_of(quadratic, rates)[-1]))
    searches = {
        name: hg.GradientSearch(estimator, optax.adam(config.hyper_lr))
        for name, estimator in {
            "learned, expected loss": hg.Reverse(in_expectation),
            "greedy, hg.Greedy": hg.Greedy(solver, decay=1.0, warm_start=False, check=None),
            "learned, hg.Reverse": hg.Reverse(solver),
        }.items()
    }

    def path_of(method, seed):
        """Returns the learning rates on the way to those of a method, of shape (hyper_steps, num_steps)."""
        if method == "greedy, closed form":
            return np.asarray(model.greedy_schedule(quadratic, config.num_steps)[0])[None]
        if method == "best constant":
            return np.full((1, config.num_steps), best_constant(config))
        problem, weights = model.expected_problem(quadratic), quadratic.start
        if method in SIMULATED:
            weights = model.particles(quadratic, config.particles, jax.random.key(config.seeds + seed))
            problem = simulated
        start = searches[method].init(problem, weights, jnp.full(config.num_steps, START))
        return learn(searches[method], problem, start, seed or 0, config.num_steps * config.hyper_steps)

    def run(advance, method, seed):
        path = path_of(method, seed)
        rates, course = path[-1].tolist(), np.asarray(losses(jnp.asarray(path[-1]))).tolist()
        row = {"final_loss": course[-1], "first_rate": rates[0], "largest_rate": max(rates)}
        history = [
            {"step": step + 1, "rate": rate, "expected_loss": loss}
            for step, (rate, loss) in enumerate(zip(rates, course, strict=True))
        ]
        return {"runs": [row | {"last_rate": rates[-1]}], "history": history, "final_losses": finals(jnp.asarray(path))}

    cells = grid(method=EXACT, seed=[None]) + grid(method=SIMULATED, seed=config.seed_range())
    return report(config, run_cells(config, cells, run))


def report(config: Config, cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Writes summary.json, history.csv, table.md and the plots, and returns the summary."""
    runs, history = rows(cells, "runs"), rows(cells, "history")
    is_default = all(getattr(config, name) == getattr(Config(), name) for name in ("curvatures", "starts", "noise"))
    reference = REFERENCE if is_default and config.num_steps == Config.num_steps else {}
    numbers = ("final_loss", "first_rate", "largest_rate", "last_rate")
    table = [
        line | {"reference": reference.get(line["method"], "-")} for line in spread_table(runs, ("method",), numbers)
    ]
    title = f"Expected loss above the noise floor after {config.num_steps} steps; reference: {SOURCE}"
    summary = save(config, runs, table, history, title)
    draw(config.out, cells, history)
    return summary


DASHED = ("greedy, hg.Greedy", "learned, hg.Reverse")


def draw(out: Path, cells: list[dict[str, Any]], history: list[Row]) -> None:
    """Draws the schedules of all methods, and the fall of the final loss while they are learned."""
    methods = grouped(history, ("method",))
    colours = {lines[0]["method"]: colour for lines, colour in zip(methods, COLOURS, strict=False)}
    style = lambda name: "--" if name in DASHED else "-"
    with figure(out / "schedules.png", 1, 2, (11, 4.2)) as axes:
        for lines in methods:
            name, seeds = lines[0]["method"], grouped(lines, ("seed",))
            for ax, column in zip(axes, ("rate", "expected_loss"), strict=True):
                values = [[line[column] for line in seed] for seed in seeds]
                band(ax, [line["step"] for line in seeds[0]], values, name, colours[name], style(name))
        axes[0].set(xlabel="training step", ylabel="learning rate", yscale="log")
        axes[1].set(xlabel="training step", ylabel="expected loss above the noise floor", yscale="log")
        axes[0].legend(fontsize=8)
        for ax in axes:
            ax.grid(alpha=0.3)
    with figure(out / "learning.png") as ax:
        for name, colour in colours.items():
            paths = [cell["final_losses"] for cell in cells if cell["runs"][0]["method"] == name]
            if len(paths[0]) > 1:
                band(ax, np.arange(1, len(paths[0]) + 1), paths, name, colour, style(name))
            else:
                ax.axhline(paths[0][0], color=colour, ls=":", label=name)
        ax.set(xlabel="hyper-steps", ylabel="final expected loss", xscale="log", yscale="log")
        ax.grid(alpha=0.3, which="both")
        ax.legend(fontsize=8)
