"""The loop that repeats a search under a budget, with progress, history, stop and resume."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import equinox as eqx
from jaxtyping import Array, PyTree

from .begin import begin
from .budget import Budget, as_budget
from .course import Course
from .failures import Failures
from .ground.autosave import Autosave, Interval
from .ground.checks import boolean, checked, function, instance, integer, path, random_key, real
from .ground.identity import Identity, devices, digest, random_bits, versions, without_addresses
from .ground.outside import program_digest, read_outside
from .ground.signals import HeldSignals
from .ground.tree import describe
from .history import History
from .pace import Pace
from .plan import Keep, Plan, everything
from .problem import PROBLEM, BilevelProblem
from .progress import WHOLE, move_bar, progress_bar
from .search.base import STATE, AbstractSearch, SearchState

STOPS = "stopping after this chunk of steps; a second signal stops at once"


@checked(
    instance("search", AbstractSearch, "a search such as GradientSearch(estimator, optimiser)"),
    PROBLEM,
    STATE,
    random_key(),
    integer("chunk", least=1, optional=True),
    function("callback", "(state, history) -> true to stop", optional=True),
    boolean("progress"),
    path("checkpoint", optional=True),
    real("every", least=0, optional=True),
    integer("every_steps", least=1, optional=True),
    function("keep", "record -> pytree of arrays"),
    integer("patience", least=1, optional=True),
    boolean("throw"),
)
def run(
    search: AbstractSearch,
    problem: BilevelProblem,
    state: SearchState,
    *,
    key: Array,
    budget: Budget | int,
    chunk: int | None = None,
    callback: Callable[[SearchState, History], Any] | None = None,
    progress: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    every: float | None = 30.0,
    every_steps: int | None = None,
    keep: Keep = everything,
    throw: bool = False,
    holdout: PyTree | Callable[[PyTree], Array] | None = None,
    patience: int | None = None,
    stream: Iterable[PyTree] | None = None,
) -> tuple[SearchState, History]:
    """Repeats `search.step` until the budget is spent.

    Step k uses `fold_in(key, k)` with k = `state.num_steps`: neither chunking nor stopping and
    resuming changes the result.

    **Arguments**

    - `state`: from `search.init`, or from an earlier run to continue it. `budget` bounds `state.spent` as a whole (for
      `seconds`: this call).
    - `budget`: a `Budget`; an integer means iterations.
    - `chunk`: steps per compiled call. `None` means 1 with a callback or a stream, else as many as take some hundredths
      of a second, whose records have 16 MB.
    - `callback(state, history)`: called after every chunk with the history of its steps; a true result stops the run.
      It changes no step, so that a run may be resumed with another.
    - `progress`: show a bar (needs tqdm).
    - `checkpoint`: a file. If it exists the run goes on from there, and a checkpoint of another run is refused, saying
      in what it differs. It holds the state; the records are appended to a second file, `<checkpoint>.records`. Both
      are written before the first step, at the end, when the run is interrupted or fails, and meanwhile, in a thread,
      as `every` and `every_steps` say. A save that fails is a `RuntimeWarning`. Of functions of Python in a loss
      (`jax.pure_callback`) the numbers are compared that they read, not their code or files.
    - `every`: seconds between two saves; `None` leaves it to `every_steps`.
    - `every_steps`: steps between two saves, rounded up to whole chunks; `None` leaves it to `every`.
    - `keep`: a function of each record, whose result the history holds as `records`; `lambda r: (r.value, r.stats)`
      saves memory when there are many hyperparameters.
    - `throw`: raise `FloatingPointError` as soon as a step has no finite result.
    - `holdout`: data like `problem.valid` that no hypergradient sees, or a function of the model. The outer loss there,
      or the function's value, chooses `best` in place of the outer loss: many hyperparameters overfit the data that
      they are learned on. It is `best.value`, in the history `stats.diagnostics["holdout"]`, and costs one evaluation
      a step. A `state` of an earlier run without a holdout keeps its model, and its best is chosen anew. Because the
      holdout has chosen, `best.value` is no estimate of the loss on fresh data.
    - `patience`: stop after so many steps without a better one on `holdout`; `None` leaves it to `budget`. Neither
      chunks nor stopping and resuming change where that is.
    - `stream`: an iterable of batches, each like `problem.train`, which then only says of what form they are: a
      generator, a data loader, an iterator over a file. Every training step reads the next one, and every step of the
      search as many as its inner solver has steps. A thread fetches the next `chunk` steps while these are computed,
      and puts them on the device. An iterable that is not an iterator begins anew when it ends; an iterator ends the
      run, with a `RuntimeWarning`. A checkpoint holds the position. It is restored by `get_state` and `set_state`, or
      `state_dict` and `load_state_dict`, of the iterator or the iterable, and then exact. Without them a resumed run
      reads past as many batches, and warns if the last of them is not the one that it was. What was fetched in vain
      when a run ends is given back to an iterator with a state, and lost with another.

    **Returns** `(state, history)`: the last state, and the `History` of the steps of this call, or of all steps since
    the checkpointed run began.

    **Failures.** The first step of a call whose value, hypergradient or update is not finite is reported by a
    `RuntimeWarning` with its likely cause. The statuses in the history tell all of them.

    **Exceptions** of a callback, of a stream or of a step have the result so far in their attributes `state` and
    `history`. Only a state of 16 MB or more is overwritten by the steps, to save memory: where one of these raises (no
    memory, an error in a callback of a loss), the last checkpoint and the `state` given are what is left.

    **Interrupts.** Ctrl-C takes effect after the steps under way, a tenth of a second or one chunk, and the save that
    follows. The `KeyboardInterrupt` then has the result so far in its attributes `state` and `history`:

        try:
            state, history = hg.run(search, problem, state, key=key, budget=5000)
        except KeyboardInterrupt as stop:
            state, history = stop.state, stop.history

    In a notebook whose cell was interrupted, `sys.last_value` is the exception. A second Ctrl-C takes effect at once.
    With a checkpoint SIGTERM waits for the save too. Handlers that the program has installed are left alone.

    **Raises** `CheckpointError` where the checkpoint is damaged, of another run, or in use; `OSError` where it cannot
    be written at the start; `FloatingPointError` where every step of the call failed, or as `throw` says, with the
    result in its attributes `state` and `history`.

    **Example**

        >>> search = hg.GradientSearch(hg.Reverse(inner), optax.adam(0.3))
        >>> state = search.init(problem, w, log_l2)
        >>> state, history = hg.run(search, problem, state, key=key, budget=hg.Budget(epochs=900))
        >>> print(f"{history.value[0]:.3f} -> {state.best.value:.3f}")
        0.352 -> 0.120
    """
    budget = as_budget(budget)
    watched = callback is not None or stream is not None or throw
    plan = Plan(search, problem, key, keep, patience=patience, outside=read_outside(keep))
    course = begin(plan, state, budget, Pace(chunk, watched), holdout=holdout, stream=stream)
    if checkpoint is not None:
        keep_at(checkpoint, course, Interval(every, every_steps))
    follow(course, budget, callback=callback, progress=progress, throw=throw)
    return course.state, course.history


def keep_at(checkpoint: str | os.PathLike[str], course: Course, interval: Interval) -> None:
    """Lets a course go on from its checkpoint, if there is one, and be saved there from now on."""
    start = course.state
    saver = Autosave(checkpoint, _identity(course.plan, start), course.chunks, course.nothing, interval, course.notes)
    course.resume(saver.load(start), saver.loaded)
    course.saver = saver


def follow(
    course: Course,
    budget: Budget,
    *,
    callback: Callable[[SearchState, History], Any] | None = None,
    progress: bool = False,
    throw: bool = False,
) -> None:
    """Moves a course up to a budget; see `run`, also for what it raises."""
    started, failures = time.monotonic(), Failures(course)
    left = not course.is_over(budget, started)
    try:
        with (
            progress_bar(progress, budget.amount, budget.unit, WHOLE) as bar,
            HeldSignals(course.saver is not None, STOPS) as signals,
            _saving(course, left),
        ):
            for taken in course.walk(budget, started, _until_saved(course)):
                failures.look(*taken)
                move_bar(bar, course, failures.failed, budget, started)
                if throw and failures.failed:
                    break
                if (callback is not None and callback(course.state, course.latest)) or signals.received:
                    break
                _save_if_due(course)
        signals.hand_on()
    except KeyboardInterrupt as error:
        raise _interrupt(course.state, course.history) from error
    except Exception as error:  # of a callback, a stream, a warning that is an error, the device
        _hand_over(error, course)
        raise
    failures.check(throw)


@contextlib.contextmanager
def _saving(course: Course, left: bool) -> Iterator[None]:
    """Saves before the first step, if one is left to do, and after the last, also where it raised."""
    with contextlib.ExitStack() as stack:
        stack.callback(course.close)
        if (saver := course.saver) is not None and left:
            saver.begin(course.state, course.num_steps)
            stack.callback(lambda: saver.end(None if course.is_lost else course.state))
            stack.callback(course.gather)
        yield


def _save_if_due(course: Course) -> None:
    if course.saver is not None and course.saver.is_due(course.num_steps):
        course.gather()
        course.saver.save(course.state, course.num_steps)


def _until_saved(course: Course) -> Callable[[int], int]:
    """Returns the function from the number of steps done to those until the next save."""
    return (lambda num_steps: sys.maxsize) if course.saver is None else course.saver.interval.steps_left


def _interrupt(state: SearchState, history: History) -> KeyboardInterrupt:
    """Returns the exception with the result so far. A class of its own would end the process with another status."""
    stop = KeyboardInterrupt(f"after step {int(state.num_steps)}, of which the attributes state and history are kept")
    stop.state, stop.history = state, history  # type: ignore[attr-defined]
    return stop


def _hand_over(error: Exception, course: Course) -> None:
    """Gives an exception that ends a run the result so far as attributes, where it was not overwritten."""
    with contextlib.suppress(Exception):  # of a class that takes no attributes, or the device once more
        if not course.is_lost:
            error.state, error.history = course.state, course.history  # type: ignore[attr-defined]
            error.add_note(f"after step {course.num_steps} of hypergrad.run; the attributes state and history hold it")


def _identity(plan: Plan, state: SearchState) -> Identity:
    """Returns texts and digests of everything that the result of a run depends on, by name."""
    problem, key = plan.problem, plan.key

    def step(problem: BilevelProblem, state: SearchState, key: Array) -> tuple[SearchState, PyTree]:
        state, record = plan.search.step(problem, state, key)
        return state, plan.keep(record)

    return {
        "search": without_addresses(eqx.tree_pformat(plan.search, width=10_000)),
        "shapes": without_addresses(describe(state)),
        **versions(),
        "random bits": random_bits(),
        "devices": devices((problem, state)),
        "program": program_digest(step, problem, state, key),
        "data": digest((problem.train, problem.valid, problem.holdout)),
        "key": digest(key),
        "start": digest(state),
    }
