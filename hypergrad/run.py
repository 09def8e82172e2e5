"""The loop that repeats a search under a budget, with progress, history, stop and resume."""

import math
import os
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .ground.checkpoint import Identity, digest, load_checkpoint, program_digest, save_checkpoint, without_addresses
from .ground.total import LARGEST, Total
from .ground.tree import describe
from .history import History, join
from .problem import BilevelProblem
from .search.base import AbstractSearch, Record, SearchState
from .stats import Status


class Budget(eqx.Module):
    """How much a run may spend, in one unit: the same for every search.

    - `iterations`: updates of the model's parameters.
    - `gradients`: gradient equivalents, see `Counts.gradients`.
    - `seconds`: wall time, compilation included, looked at between chunks.

    A step is begun as long as something is left, so a budget is exceeded by less than one step.

    **Raises** `TypeError` or `ValueError` unless exactly one is given and it is a positive number.
    """

    iterations: int | None = None
    gradients: int | None = None
    seconds: float | None = None

    def __check_init__(self):
        given = {name: value for name, value in vars(self).items() if value is not None}
        if len(given) != 1:
            raise ValueError(f"give one of iterations, gradients, seconds; got {given}")
        ((name, value),) = given.items()
        if not isinstance(value, int | float):
            raise TypeError(f"budget must be a number, got {name}={value!r}")
        if not value > 0:
            raise ValueError(f"budget must be positive, got {name}={value}")

    @property
    def unit(self) -> str:
        """`iterations`, `gradients` or `seconds`."""
        return next(name for name, value in vars(self).items() if value is not None)

    @property
    def amount(self) -> float:
        """How much of it."""
        return getattr(self, self.unit)


def everything(record: Record) -> Record:
    """Keep the whole record."""
    return record


def run(
    search: AbstractSearch,
    problem: BilevelProblem,
    state: SearchState,
    *,
    key: Array,
    budget: Budget | int,
    chunk: int = 1,
    callback: Callable[[SearchState, History], Any] | None = None,
    progress: bool = False,
    checkpoint: str | os.PathLike | None = None,
    keep: Callable[[Record], PyTree] = everything,
    throw: bool = False,
) -> tuple[SearchState, History]:
    """Repeats `search.step` until the budget is spent.

    Step k uses `fold_in(key, k)` with k = `state.num_steps`: neither chunking nor stopping and
    resuming changes the result.

    **Arguments**

    - `state`: from `search.init`, or from an earlier run to continue it. `budget` bounds `state.spent` as a whole (for
      `seconds`: this call).
    - `budget`: a `Budget`; an integer means iterations.
    - `chunk`: steps per compiled call. More is faster for short steps and reports less often.
    - `callback(state, history)`: called after every chunk with the history of its steps; a true result stops the run.
    - `progress`: show a bar (needs tqdm).
    - `checkpoint`: a file. If it exists the run goes on from there, and a checkpoint of another run is refused, saying
      in what it differs; it is written every 30 seconds, at the end, and when the run is interrupted.
    - `keep`: a function of each record, whose result the history holds as `records`; `lambda r: (r.value, r.stats)`
      saves memory when there are many hyperparameters.
    - `throw`: raise `FloatingPointError` as soon as a step reports a value that is not finite.

    **Returns** `(state, history)`: the last state, and the `History` of the steps of this call, or of all steps since
    the checkpointed run began.
    """
    if isinstance(budget, int | float):
        budget = Budget(iterations=budget)
    if not (isinstance(chunk, int) and chunk >= 1):
        raise ValueError(f"chunk must be a positive integer, got {chunk!r}")
    state = eqx.tree_at(lambda s: s.spent, state, state.spent.totals)
    history: list[History] = []
    identity = {} if checkpoint is None else _identity(search, problem, state, key, keep)
    if checkpoint is not None and os.path.exists(checkpoint):
        like = state, _columns(_no_steps(search, problem, state, keep))
        (state, columns), identity = load_checkpoint(checkpoint, like, identity)
        history.append(History(*columns))

    def save():
        assert checkpoint is not None
        save_checkpoint(checkpoint, (state, _columns(join(history))), identity | {"reached": digest(state)})

    started = saved = time.monotonic()
    # An array, so that one compilation serves every amount.
    limit = Total.of(LARGEST if budget.unit == "seconds" else min(math.ceil(budget.amount), LARGEST))
    with _bar(progress, budget) as bar:
        try:
            while not _spent(state, budget, started):
                before, begun = int(state.num_steps), time.monotonic()
                state, steps, worst = _advance(
                    search, problem, state, key, limit, jnp.int32(before + chunk), budget.unit, keep, chunk
                )
                history.append(_history(steps, int(state.num_steps) - before, begun))
                if bar is not None:
                    bar.set_postfix(best=f"{float(state.best.value):.5g}", steps=int(state.num_steps), refresh=False)
                    bar.update(min(_used(state, budget, started), budget.amount) - bar.n)
                if throw and int(worst) & Status.NONFINITE:
                    raise FloatingPointError(
                        f"a value that is not finite by step {int(state.num_steps)}: {Status(int(worst))!r}"
                    )
                if callback is not None and callback(state, history[-1]):
                    break
                if checkpoint is not None and time.monotonic() - saved > 30:
                    save()
                    saved = time.monotonic()
        finally:
            if checkpoint is not None and history:
                save()
    if not history:
        history = [_no_steps(search, problem, state, keep)]
    return state, join(history)


def _identity(search, problem, state, key, keep) -> Identity:
    """Texts and digests of everything that the result of a run depends on, by name."""

    def step(problem, state, key):
        state, record = search.step(problem, state, key)
        return state, keep(record)

    return {
        "search": without_addresses(eqx.tree_pformat(search, width=10_000)),
        "shapes": without_addresses(describe(state)),
        "jax": jax.__version__,
        "program": program_digest(step, problem, state, key),
        "data": digest((problem.train, problem.valid)),
        "key": digest(key),
        "start": digest(state),
    }


@eqx.filter_jit
def _advance(search, problem, state, key, limit, until, unit: str, keep, chunk: int):
    """Steps up to number `until`, at most `chunk`, while something of the budget is left. Returns the state, the kept
    records with what was spent after each (room for `chunk`), and the union of all statuses."""

    def step(state):
        state, record = search.step(problem, state, jax.random.fold_in(key, state.num_steps))
        return state, (keep(record), state.spent.iterations, state.spent.gradients), record.stats.status

    def unfinished(carry):
        state, *_ = carry
        left = True if unit == "seconds" else getattr(state.spent, unit) < limit
        return left & (state.num_steps < until)

    def body(carry):
        state, steps, worst, place = carry
        state, one, status = step(state)
        steps = jax.tree.map(lambda room, leaf: room.at[place].set(leaf), steps, one)
        return state, steps, worst | status, place + 1

    _, shapes, _ = eqx.filter_eval_shape(step, state)
    room = jax.tree.map(lambda leaf: jnp.zeros((chunk, *leaf.shape), leaf.dtype), shapes)
    # A loop of a length that the compiler does not know: one it unrolls would round otherwise than a longer one.
    return jax.lax.while_loop(unfinished, body, (state, room, jnp.int32(0), jnp.int32(0)))[:3]


def _history(steps: tuple, taken: int, begun: float) -> History:
    """The steps of one compiled call that began at the time `begun`."""
    records, iterations, gradients = jax.tree.map(lambda leaf: np.asarray(leaf)[:taken], steps)
    durations = np.full(taken, (time.monotonic() - begun) / max(taken, 1))
    return History(records, np.asarray(iterations), np.asarray(gradients), durations)


def _no_steps(search, problem, state, keep) -> History:
    """A history of no steps."""
    shapes = eqx.filter_eval_shape(lambda: keep(search.step(problem, state, jax.random.key(0))[1]))
    records = jax.tree.map(lambda leaf: np.zeros((0, *leaf.shape), leaf.dtype), shapes)
    return History(records, np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))


def _columns(history: History) -> tuple:
    """All that a checkpoint holds of a history."""
    return history.records, history.iterations, history.gradients, history.durations


def _used(state: SearchState, budget: Budget, started: float) -> float:
    return time.monotonic() - started if budget.unit == "seconds" else int(getattr(state.spent, budget.unit))


def _spent(state: SearchState, budget: Budget, started: float) -> bool:
    return _used(state, budget, started) >= budget.amount


def _bar(progress: bool, budget: Budget):
    if not progress:
        import contextlib

        return contextlib.nullcontext()
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError("progress=True needs tqdm: pip install 'hypergrad-jax[progress]'") from error
    form = "{l_bar}{bar}| {n:.0f}/{total:.0f} [{elapsed}<{remaining}{postfix}]"
    return tqdm(total=budget.amount, unit=f" {budget.unit}", bar_format=form)
