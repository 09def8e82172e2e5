"""The methods of search, the penalties that they try, and their costs."""

import time
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

import hypergrad as hg

from . import model

TIGHT = 1e-8  # inner and linear tolerance of what has no schedule
MOST = 1000  # updates of L-BFGS
SCHEDULES = {
    "HOAG, exponential": hg.tolerances.exponential(),
    "HOAG, quadratic": hg.tolerances.quadratic(),
    "HOAG, cubic": hg.tolerances.cubic(),
    "HOAG, exact": lambda k: jnp.full_like(k, TIGHT, dtype=float),
}
MethodName = Literal["HOAG, exponential", "HOAG, quadratic", "HOAG, cubic", "HOAG, exact", "implicit", "grid", "random"]
METHODS: tuple[MethodName, ...] = get_args(MethodName)


class Start(NamedTuple):
    """A problem, its initial weights, the first log-penalty, and the seed of random proposals."""

    problem: hg.BilevelProblem
    params: Any
    log_penalty: float
    seed: int


class Searches:
    """All methods, made once for all data sets and seeds."""

    def __init__(self):
        inner, linear = model.lbfgs(MOST), hg.CG(200, rtol=0.0)
        estimators: dict[str, hg.AbstractEstimator] = {
            name: hg.HOAG(inner, linear, schedule=schedule) for name, schedule in SCHEDULES.items()
        }
        estimators["implicit"] = hg.Implicit(inner, hg.CG(200, rtol=TIGHT), atol=TIGHT, warm_start=True)
        step, box = hg.adaptive_step(), lambda log_penalty: jnp.clip(log_penalty, *model.BOX)
        self.inner, self.train = inner, model.make_trainer(inner)
        self.by_gradient = {name: hg.GradientSearch(one, step, projection=box) for name, one in estimators.items()}

    def path(self, name: str, start: Start, budget: int) -> list[dict[str, float]]:
        """Returns every penalty that was tried, with the work and the seconds spent by then, without compilation."""
        run = self._descend if name in self.by_gradient else self._try
        run(name, start, 1)
        return run(name, start, budget)

    def _descend(self, name: str, start: Start, budget: int) -> list[dict[str, float]]:
        search, path = self.by_gradient[name], []
        state = search.init(start.problem, start.params, jnp.asarray(start.log_penalty))
        begun = time.perf_counter()

        def record(state, records):
            spent = {"gradients": int(state.spent.gradients), "seconds": time.perf_counter() - begun}
            path.append({"log_penalty": float(records.hparams[0])} | spent)

        options: dict[str, Any] = {"key": jax.random.key(0), "budget": hg.Budget(gradients=budget)}
        hg.run(search, start.problem, state, callback=record, **options)
        return path

    def _try(self, name: str, start: Start, budget: int) -> list[dict[str, float]]:
        """Trains at each proposal from the end of the last one."""
        path: list[dict[str, float]] = []
        proposals = model.ever_finer_grid() if name == "grid" else model.uniform_draws(start.seed)
        state: Any = self.inner.init(start.problem, start.params, jnp.asarray(0.0))
        tol, gradients, begun = TIGHT * float(jnp.linalg.norm(state.solver.grad["weight"])), 0, time.perf_counter()
        while gradients < budget:
            log_penalty = next(proposals)
            trained = self.train(start.problem, log_penalty, state, tol)
            state, gradients = trained.state, gradients + int(trained.gradients)
            path.append({"log_penalty": log_penalty, "gradients": gradients, "seconds": time.perf_counter() - begun})
        return path


def judged(path: list[dict[str, float]], curve: model.Curve) -> list[dict[str, float]]:
    """Returns the path with the exact suboptimality of the best penalty so far."""
    losses = np.minimum.accumulate(curve.loss(np.array([line["log_penalty"] for line in path])))
    return [
        line | {"suboptimality": max(float(loss) - curve.best, 0.0)} for line, loss in zip(path, losses, strict=True)
    ]


def cost_to(path: list[dict[str, float]], level: float, unit: str) -> float | None:
    """Returns the cost at which the suboptimality first reached a level; `None` if it never did."""
    return next((line[unit] for line in path if line["suboptimality"] <= level), None)
