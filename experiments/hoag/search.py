"""What every method tries, and what that costs."""

import time
from collections.abc import Iterator
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

import hypergrad as hg

from . import model

TIGHT = 1e-8  # inner and linear tolerance of what has no schedule
MOST = 1000  # updates of L-BFGS
SCHEDULES = {
    "HOAG, exponential": hg.exponential_tolerance(),
    "HOAG, quadratic": hg.quadratic_tolerance(),
    "HOAG, cubic": hg.cubic_tolerance(),
    "HOAG, exact": lambda k: jnp.full_like(k, TIGHT, dtype=float),
}
MethodName = Literal["HOAG, exponential", "HOAG, quadratic", "HOAG, cubic", "HOAG, exact", "implicit", "grid", "random"]
METHODS: tuple[MethodName, ...] = get_args(MethodName)


class Searches:
    """All methods, made once for all data sets and seeds."""

    def __init__(self):
        inner, linear = model.lbfgs(MOST), hg.CG(200, tol=0.0)
        estimators: dict[str, hg.AbstractEstimator] = {
            name: hg.HOAG(inner, linear, schedule=schedule) for name, schedule in SCHEDULES.items()
        }
        estimators["implicit"] = hg.Implicit(inner, hg.CG(200, tol=TIGHT), tol=TIGHT, warm_start=True)
        step, box = hg.adaptive_step(), lambda log_penalty: jnp.clip(log_penalty, *model.BOX)
        self.inner, self.trial = inner, model.make_trial(inner)
        self.by_gradient = {name: hg.GradientSearch(one, step, projection=box) for name, one in estimators.items()}

    def path(self, name: str, problem, params, start: float, budget: int, seed: int) -> list[dict[str, float]]:
        """Every penalty that was tried, with the work and the seconds spent by then, compilation left out."""
        if name in self.by_gradient:
            self._descend(name, problem, params, start, 1)
            return self._descend(name, problem, params, start, budget)
        proposals = model.ever_finer_grid if name == "grid" else lambda: model.uniform_draws(seed)
        self._try(problem, params, proposals(), 1)
        return self._try(problem, params, proposals(), budget)

    def _descend(self, name, problem, params, start, budget):
        search, path = self.by_gradient[name], []
        state = search.init(problem, params, jnp.asarray(start))
        begun = time.perf_counter()

        def look(state, record):
            spent = {"gradients": int(state.spent.gradients), "seconds": time.perf_counter() - begun}
            path.append({"log_penalty": float(record.hparams[0])} | spent)

        hg.run(search, problem, state, key=jax.random.key(0), budget=hg.Budget(gradients=budget), callback=look)
        return path

    def _try(self, problem, params, proposals: Iterator[float], budget: int) -> list[dict[str, float]]:
        """Each proposal is trained from where the last one ended."""
        path: list[dict[str, float]] = []
        state: Any = self.inner.init(problem, params, jnp.asarray(0.0))
        tol, gradients, begun = TIGHT * float(jnp.linalg.norm(state.solver.grad["weight"])), 0, time.perf_counter()
        while gradients < budget:
            log_penalty = next(proposals)
            trial = self.trial(problem, log_penalty, state, tol)
            state, gradients = trial.state, gradients + int(trial.gradients)
            path.append({"log_penalty": log_penalty, "gradients": gradients, "seconds": time.perf_counter() - begun})
        return path


def judged(path: list[dict[str, float]], curve: model.Curve) -> list[dict[str, float]]:
    """The path with the exact suboptimality of the best penalty so far."""
    losses = np.minimum.accumulate(curve.loss(np.array([line["log_penalty"] for line in path])))
    return [
        line | {"suboptimality": max(float(loss) - curve.best, 0.0)} for line, loss in zip(path, losses, strict=True)
    ]


def cost_to(path: list[dict[str, float]], level: float, unit: str) -> float | None:
    """What was spent when the suboptimality first reached a level; None if it never did."""
    return next((line[unit] for line in path if line["suboptimality"] <= level), None)
