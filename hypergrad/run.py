"""The loop that repeats a search under a budget, with progress, history, stop and resume."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ensembles.ground.memory import refuse_too_large

from .budget import Budget, as_budget
from .course import Course, Plan
from .data.stream import Stream
from .failures import Failures
from .ground.autosave import Autosave
from .ground.checks import boolean, checked, function, instance, integer, path, random_key, real, refuse_traced
from .ground.identity import Identity, devices, digest, program_digest, refuse_different, versions, without_addresses
from .ground.shapes import shapes_of
from .ground.signals import HeldSignals
from .ground.tree import describe
from .history import History
from .pace import Pace
from .problem import PROBLEM, BilevelProblem
from .progress import progress_bar, show
from .search.base import STATE, AbstractSearch, Record, SearchState
from .search.holdout import with_holdout

Keep = Callable[[Record], PyTree]
STOPS = "stopping after this chunk of steps; a second signal stops at once"


def everything(record: Record) -> Record:
    """Keeps the whole record."""
    return record


@checked(
    instance("search", AbstractSearch, "a search such as GradientSearch(estimator, optimiser)"),
    PROBLEM,
    STATE,
    random_key("key"),
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
    - `progress`: show a bar (needs tqdm).
    - `checkpoint`: a file. If it exists the run goes on from there, and a checkpoint of another run is refused, saying
      in what it differs. It holds the state; the records are appended to a second file, `<checkpoint>.records`. Both
      are written before the first step, at the end, when the run is interrupted or fails, and meanwhile, in a thread,
      as `every` and `every_steps` say. A save that fails is a `RuntimeWarning`.
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

    A state of 16 MB or more is overwritten by the steps, to save memory: where one raises (no memory, an error in a
    callback of a loss), the last checkpoint and the `state` given are what is left.

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
    example, state = _with_holdout(problem, state, holdout, patience)
    problem, feed = _with_stream(search, example, state, stream, chunk or 1, budget)
    watched = callback is not None or stream is not None or throw
    state, pace = _checked_state(search, problem, state, key, keep, chunk, watched)
    plan = Plan(search, problem, key, keep, pace.room, budget.count, stream is not None, _as_array(patience))
    course, started, saver = Course(plan, state, pace, stream=feed), time.monotonic(), None
    if checkpoint is not None:
        identity = _identity(search, problem, state, key, keep)
        saver = Autosave(checkpoint, identity, course.chunks, course.nothing, every, every_steps, course.notes)
        course.resume(saver.load(state), saver.loaded)
    failures, left = Failures(search, example, key), not course.is_over(budget, started)
    try:
        with (
            progress_bar(progress, budget) as bar,
            HeldSignals(saver is not None, STOPS) as signals,
            _saving(saver, course, left),
        ):
            for taken in course.walk(budget, started, _until_saved(saver)):
                failures.look(course, *taken)
                show(bar, course, failures.failed, budget, started)
                if throw and failures.failed:
                    break
                if (callback is not None and callback(course.state, course.latest)) or signals.received:
                    break
                _save_if_due(saver, course)
        signals.hand_on()
    except KeyboardInterrupt as error:
        raise _interrupt(course.state, course.history) from error
    failures.check(course.state, course.history, throw)
    return course.state, course.history


def _with_holdout(
    problem: BilevelProblem, state: SearchState, holdout: Any, patience: int | None
) -> tuple[BilevelProblem, SearchState]:
    """Returns the problem with its holdout, and the state as a run with it carries it.

    **Raises** what `with_holdout` raises, and `ValueError` naming the argument that has no meaning without a holdout.
    """
    if holdout is None:
        if patience is not None:
            raise ValueError("patience counts steps without a better one on holdout, which is not given")
        if state.stale is not None:
            raise ValueError("the best of state was chosen on a holdout; give holdout again")
        return problem, state
    problem = with_holdout(problem, holdout, state.best.params, state.best.hparams)
    return problem, state if state.stale is not None else state.chosen_anew


def _as_array(patience: int | None) -> Array | None:
    """Returns the number as an array, so that one compilation serves every patience."""
    return None if patience is None else jnp.int32(patience)


def _with_stream(
    search: AbstractSearch, problem: BilevelProblem, state: SearchState, stream: Any, chunk: int, budget: Budget
) -> tuple[BilevelProblem, Stream | None]:
    """Returns the problem whose training data are a stretch of the stream, and the stream.

    **Raises** `TypeError` or `ValueError` naming the argument with which they cannot be.
    """
    if stream is None:
        return problem, None
    if budget.unit == "epochs":
        raise ValueError("budget must be in iterations, gradients or seconds: a stream does not tell its rows")
    feed = Stream(stream, problem.train, search.num_inner_steps, chunk)
    problem = eqx.tree_at(lambda p: p.train, problem, feed.probe())
    try:
        eqx.filter_eval_shape(search.init, problem, state.best.params, state.hparams)
    except Exception as error:
        raise ValueError(f"search cannot train on a stream: {error}") from error
    return problem, feed


def _checked_state(
    search: AbstractSearch,
    problem: BilevelProblem,
    state: SearchState,
    key: Array,
    keep: Keep,
    chunk: int | None,
    watched: bool,
) -> tuple[SearchState, Pace]:
    """Returns the state with its work in totals, and the pace of the run.

    **Raises**, naming the argument, unless a step takes `state`, returns one like it, and `chunk` records have room.
    """
    refuse_traced("search.step in a loop", problem=problem, state=state, key=key)
    try:
        after, record = shapes_of(search.step, problem, state, key)
    except Exception as error:
        raise ValueError(f"state does not fit search and problem, for which a step fails: {error}") from error
    refuse_different("state", after, state, "one of this search on this problem")
    try:
        kept = jax.tree.leaves(shapes_of(keep, record))
        if any(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in kept):
            raise TypeError("a history holds no random keys, but their jax.random.key_data")
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in kept)
    except Exception as error:  # also of what keeps no arrays
        raise ValueError(f"keep fails on the record of a step: {error}") from error
    refuse_too_large(size * (chunk or 1), "chunk", f"the records of {chunk} steps")
    return eqx.tree_at(lambda s: s.spent, state, state.spent.totals), Pace(chunk, watched, size)


@contextlib.contextmanager
def _saving(saver: Autosave | None, course: Course, left: bool) -> Iterator[None]:
    """Saves before the first step, if one is left to do, and after the last, also where it raised."""
    with contextlib.ExitStack() as stack:
        stack.callback(course.close)
        if saver is not None and left:
            saver.begin(course.state, course.num_steps)
            stack.callback(lambda: saver.end(None if course.is_lost else course.state))
            stack.callback(course.gather)
        yield


def _save_if_due(saver: Autosave | None, course: Course) -> None:
    if saver is not None and saver.is_due(course.num_steps):
        course.gather()
        saver.save(course.state, course.num_steps)


def _until_saved(saver: Autosave | None) -> Callable[[int], int]:
    """Returns the function from the number of steps done to those until the next save."""
    return (lambda num_steps: sys.maxsize) if saver is None else saver.steps_left


def _interrupt(state: SearchState, history: History) -> KeyboardInterrupt:
    """Returns the exception with the result so far. A class of its own would end the process with another status."""
    stop = KeyboardInterrupt(f"after step {int(state.num_steps)}, of which the attributes state and history are kept")
    stop.state, stop.history = state, history  # type: ignore[attr-defined]
    return stop


def _identity(search: AbstractSearch, problem: BilevelProblem, state: SearchState, key: Array, keep: Keep) -> Identity:
    """Returns texts and digests of everything that the result of a run depends on, by name."""

    def step(problem: BilevelProblem, state: SearchState, key: Array) -> tuple[SearchState, PyTree]:
        state, record = search.step(problem, state, key)
        return state, keep(record)

    return {
        "search": without_addresses(eqx.tree_pformat(search, width=10_000)),
        "shapes": without_addresses(describe(state)),
        **versions(),
        "devices": devices((problem, state)),
        "program": program_digest(step, problem, state, key),
        "data": digest((problem.train, problem.valid, problem.holdout)),
        "key": digest(key),
        "start": digest(state),
    }
