"""Hyperparameters learned during one training run, in one call."""

import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import Array, PyTree

from ..estimators.reverse import Reverse
from ..ground.checks import checked, function, instance, integer, path, random_key, refuse_traced
from ..ground.hparams import as_hparams
from ..history import History
from ..inner import AbstractInnerSolver
from ..problem import BilevelProblem, check_model
from ..search.base import SearchState
from ..search.gradient import GradientSearch, identity
from .momentum import MEMORY, Bounded, bounds
from .race import Track, choose, finish, line_up, losses_of, warn_if_worse, winner_of
from .report import on_momentum, on_ruin, report
from .setup import all_starts, in_losses, periods, scaled_adam, steps, units

REACH = 20  # horizons between two moves of λ: a differentiated update costs two gradients, and three updates in time
SHARE = 0.15  # of the budget that the choice of a start may take
LEAST = 200  # gradients of a budget


@dataclasses.dataclass(frozen=True)
class Tuned:
    """The result of `tune`; prints as its report.

    - `params`, `hparams`, `value`: the best model, its hyperparameters, its loss on the holdout, or the outer loss.
    - `state`, `history`: of the search that went on to the end; `history` is every hyper-step of it.
    - `gradients`: gradient equivalents spent in all, the starts that were given up included.
    - `report`: sentences on the choices and their reasons.
    """

    params: PyTree
    hparams: PyTree
    value: Array
    state: SearchState
    history: History
    gradients: int
    report: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.report)


@checked(
    instance("inner", AbstractInnerSolver, "an inner solver such as OptaxSolver(optimiser, num_steps)"),
    instance("problem", BilevelProblem, "a BilevelProblem"),
    random_key("key"),
    integer("budget", least=LEAST, optional=True),
    integer("memory", least=2, optional=True),
    function("projection", "hparams -> hparams"),
    function("callback", "(state, history) -> anything", optional=True),
    integer("patience", least=1, optional=True),
    path("checkpoint", optional=True),
)
def tune(
    inner: AbstractInnerSolver,
    problem: BilevelProblem,
    params: PyTree,
    hparams: PyTree,
    *,
    key: Array,
    budget: int | None = None,
    scale: PyTree = 1.0,
    starts: Sequence[PyTree] | None = None,
    memory: int | None = MEMORY,
    projection: Callable[[PyTree], PyTree] = identity,
    holdout: PyTree | Callable[[PyTree], Array] | None = None,
    patience: int | None = None,
    callback: Callable[[SearchState, History], Any] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> Tuned:
    """Trains a model and learns its hyperparameters meanwhile, for the gradients of plain training.

        solver = hg.OptaxSolver(lambda h: optax.adam(jnp.exp(h["log_rate"]), eps_root=1e-12), 20_000)
        tuned = hg.tune(solver, problem, params, hparams, key=jax.random.key(0))
        print(tuned)

    The steps, each of which can be taken by hand:

    1. The outer loss is that of weights averaged over 2K updates (`OptaxSolver(..., average=)`), because short horizons
       drive the learning rate of others to zero. Shorter averages bear less noise and less momentum.
    2. With B the budget, λ moves every K = √(B/2) updates along `Reverse(horizon=K/20, warm_start=True)`, which costs
       1.1 gradients per update, by Adam with step 0.2 in units of `scale`, and 0.4 for what enters a loss, such as a
       penalty, because that acts at once; by less where a unit of `scale` changes the outer loss by less than a
       hundredth of what it does for the hyperparameter that matters most. The horizon is halved as long as the adjoint
       grows more than a hundredfold in a trial.
    3. Starts race for some 15 % of the budget, and one move at least: all train and move λ; the worse half gives up,
       again and again. So a start that ruins training is replaced.
    4. The winner goes on from its weights to the end of the budget. Where it has lost nine tenths of what training
       had gained on both losses, the next best start goes on in its place, and the best of all is returned.

    **Arguments**

    - `inner`: how the model is trained, with the number of updates of one plain training run. A field `average` that
      is set stays.
    - `hparams`: the start; logarithms and logits where a quantity is positive or a share.
    - `budget`: gradient equivalents in all, by default one for each update of `inner`, as in plain training. Of
      seven starts the winner makes three quarters of these updates then: a schedule over all of them comes to its end
      with 1.3 for each. Only the evaluations that a random outer loss needs can exceed it.
    - `scale`: a number, or a pytree like `hparams`: the distance over which a hyperparameter matters; 1 suits
      logarithms, 0 holds one where it is.
    - `starts`: further starts, like `hparams`. By default one for every direction of each hyperparameter that enters
      the optimiser and no loss, such as a learning rate: by log 10 units of `scale` smaller and larger. Arrays under
      one entry of `hparams`, such as the rates of all layers, move together, and so do all entries where the budget
      pays no more. Two more have all that enters a loss smaller and larger together, by twice that: a penalty that
      drives the weights of a network to zero leaves no hypergradient that leads away.
    - `memory`: the most updates that a learned momentum may remember, 1/(1 - b1) for Adam's b1 and any form of it;
      `None` bounds nothing. What is a momentum is found by letting the optimiser coast: after one gradient of ones it
      gets zeros, and goes on by so many of its last updates. A momentum that remembers far more updates than the
      horizon drives the rate up until training is ruined: averaged weights lag behind, so that a step further lowers
      their loss at once, and that it overshoots shows only later. Not found is the momentum of an optimiser whose
      updates have one size (Lion), or that is fixed.
    - `projection`: applied to λ after every move, and after that bound.
    - `holdout`, `patience`: as in `run`; they choose among the starts too.
    - `callback(state, history)`: called after every few hyper-steps of any start with the history of these; a true
      result ends the race of this start, or the search.
    - `checkpoint`: a file; the same call goes on from there. Each start has its own, `<checkpoint>.0` and so on.

    *Cost*: the budget. *Memory*: K/20 states of training, and the first and present state of each start.
    *Bias*: that of a short horizon at averaged weights.
    *When not to use it*: where training is short or the hyperparameters act on its first steps alone, such as the scale
    of the first weights; use `Reverse` over the whole of training. A decay without a bound can run away, see
    docs/tabular.md: give a `projection`.

    A `RuntimeWarning` says that the best loss is above that of the model given, as where training diverges from every
    start.

    **Raises** `TypeError` or `ValueError` naming the argument that does not fit; `FloatingPointError` where no start
    has a finite result.
    """
    refuse_traced("search.step in a loop", problem=problem, params=params, hparams=hparams, key=key)
    total = max(inner.num_steps, LEAST) if budget is None else budget
    hparams = as_hparams(hparams)
    partitioned = check_model(problem, params, hparams)
    unit = units(scale, hparams)
    fast = in_losses(problem, partitioned, hparams)
    solver, optimiser = periods(inner, total), scaled_adam(steps(unit, fast))
    named = all_starts(hparams, unit, fast, starts, most=solver.num_steps)
    lower, upper, momenta = bounds(inner, partitioned.arrays, hparams, unit, fast, memory)
    limited = Bounded(lower, upper, projection) if momenta else projection

    def search(horizon: int) -> GradientSearch:
        estimator = Reverse(solver, horizon=horizon, warm_start=True, check=None)
        return GradientSearch(estimator, optimiser, projection=limited)

    longest, track = max(solver.num_steps // REACH, 1), Track(problem, key, holdout, patience, callback)
    choice = choose(search, longest, search(longest).init(problem, params, hparams), track)
    race = line_up(choice, named, checkpoint)
    winner = winner_of(race, SHARE * total, callback)
    first = choice.course.state
    untrained = losses_of(choice.course.plan, first.inner_state.inner.partitioned, first.hparams)
    went_on = finish(race, winner, choice, untrained, total, callback)
    winner = min(went_on, key=lambda rival: rival.loss)
    if not math.isfinite(winner.loss):
        raise FloatingPointError("no start has a finite loss: training diverges, or the loss is not defined there")
    course, spent = winner.course, choice.spent + sum(rival.course.gradients for rival in race)
    best = course.state.best
    warn_if_worse(untrained, winner.loss)
    held = on_momentum(momenta, memory)
    words = report(choice, race, winner, spent, inner.num_steps, [*held, *on_ruin(went_on)])
    return Tuned(best.params, best.hparams, best.value, course.state, course.history, spent, words)
