"""A comparison of estimators with the exact hypergradient, before a long run."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from .estimators.base import AbstractEstimator
from .estimators.common.names import ESTIMATORS
from .estimators.drmad import DrMAD
from .estimators.reverse import Reverse
from .findings import RIGHT, Diagnosis, Finding
from .ground.checks import Rule, checked, instance, integer, random_key, real, refuse_traced
from .ground.dependence import enters
from .ground.hparams import as_hparams
from .inner import AbstractInnerSolver
from .problem import PROBLEM, BilevelProblem
from .smoothing import Smoothing, smoothing
from .spread import spread
from .stats import Stats, Status

Start = tuple[BilevelProblem, PyTree, PyTree, Array]  # problem, params, hparams, key
LONGEST = 10**6  # training steps of a comparison
DISTURBANCE = 1e-4  # change of the first weights that the exact hypergradient should stand, see `Finding.stability`


def _zero_or_several(value: Any) -> int:
    """Returns 0, or an integer from 2 on."""
    number: int = integer("num_keys", least=0).convert(value)
    if number == 1:
        raise ValueError
    return number


NUM_KEYS = Rule("num_keys", "0 or an integer of at least 2", _zero_or_several)


@checked(PROBLEM, ESTIMATORS, random_key(), integer("num_steps", least=1, most=LONGEST, optional=True), NUM_KEYS)
def diagnose(
    problem: BilevelProblem,
    estimators: Mapping[str, AbstractEstimator] | Sequence[AbstractEstimator] | AbstractEstimator,
    params: PyTree,
    hparams: PyTree,
    *,
    key: Array,
    num_steps: int | None = None,
    num_keys: int = 4,
) -> Diagnosis:
    """Compares estimators with exact reverse mode through the same training, once, from `params`.

    **Arguments**

    - `estimators`: one, several, or several by name; each with its own field `inner`.
    - `num_steps`: train every one for so many steps: a horizon short enough to afford the exact hypergradient.
      Approximations may get worse over longer ones: compare two horizons before a long run.
    - `num_keys`: the number of keys over which the spread of a random hypergradient is measured, at least 2; 0 for not.

    *Cost*: per estimator its own step four times, and `num_keys` times more, side by side, where it depends on the key;
    per inner solver two exact hypergradients (√T checkpoints), three where layers have a state, and where one is
    ill-conditioned 585 to 1,170 training runs of `ES`, 65 side by side, which measure the range to smooth over.

    **Raises** what the estimators' `init` raises, and `ValueError` where the exact hypergradient is zero or not finite.

    **Example**

        >>> report = hg.diagnose(problem, [hg.DrMAD(inner), hg.OneStep(inner)], w, log_l2, key=key)
        >>> for one in report.ranked:
        ...     print(one.name, f"{one.norm_ratio:.2f}")
        ...
        DrMAD() 0.82
        OneStep() 0.26
    """
    refuse_traced("estimator.step", problem=problem, params=params, hparams=hparams, key=key)
    hparams = as_hparams(hparams)
    start = (problem, params, hparams, key)
    references: list[_Reference] = []
    smoothings: dict[int, Smoothing] = {}  # by the identity of the reference
    findings = []
    named: Any = estimators  # as ESTIMATORS returns them, by name, each with an inner solver
    for name, estimator in named.items():
        if num_steps is not None:
            estimator = dataclasses.replace(estimator, inner=estimator.inner.with_num_steps(num_steps))
        inner = estimator.inner
        known = next((r for r in references if r.inner is inner or eqx.tree_equal(r.inner, inner) is True), None)
        if known is None:
            known = _reference(inner, start)
            references.append(known)
        found = _examine(name, estimator, start, known, num_keys)
        if found.verdict == "ill-conditioned":
            if id(known) not in smoothings:
                smoothings[id(known)] = smoothing(known.inner, *start)
            found = _advised(found, smoothings[id(known)])
        findings.append(found)
    return Diagnosis(tuple(findings))


def _advised(found: Finding, ladder: Smoothing) -> Finding:
    sigma = float("nan") if ladder.sigma is None else ladder.sigma
    return dataclasses.replace(found, sigma=sigma, advice=ladder.advice)


@checked(
    PROBLEM,
    instance("estimator", DrMAD, "a DrMAD estimator"),
    random_key(),
    real("cosine", above=0, most=1),
)
def fewest_knots(
    problem: BilevelProblem, estimator: DrMAD, params: PyTree, hparams: PyTree, *, key: Array, cosine: float = RIGHT
) -> tuple[int, Diagnosis]:
    """Returns the fewest knots, of 1, 2, 4 and so on up to T, with which `estimator` reaches a similarity of
    `cosine` with the exact hypergradient, and the findings on the way. It is T where only the exact path will do.

    **Example**

        >>> knots, report = hg.fewest_knots(problem, hg.DrMAD(inner), w, log_l2, key=key)
        >>> knots
        1
    """
    total, hparams = estimator.inner.num_steps, as_hparams(hparams)
    ladder = [*(2**k for k in range(total.bit_length()) if 2**k < total), total]
    start = (problem, params, hparams, key)
    reference = _reference(estimator.inner, start)
    tried: list[Finding] = []
    for knots in ladder:
        one = dataclasses.replace(estimator, knots=knots)
        tried.append(_examine(f"knots={knots}", one, start, reference, 0))
        if tried[-1].cosine >= cosine:
            break
    return knots, Diagnosis(tuple(tried))


def _flat(tree: PyTree) -> np.ndarray:
    return np.asarray(ravel_pytree(tree)[0], np.float64)


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    size = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / size) if size > 0 else float("nan")


def _similarity(a: np.ndarray, b: np.ndarray) -> float:
    """Returns 2 a·b/(‖a‖² + ‖b‖²), the cosine of vectors of one length and less for others."""
    scale = max(np.max(np.abs(a)), np.max(np.abs(b)))
    a, b = a / scale, b / scale
    return float(2 * a @ b / (a @ a + b @ b))


class _Reference(NamedTuple):
    """The exact hypergradient of an inner solver, what `Finding` says of it, and the seconds of a training."""

    inner: AbstractInnerSolver
    exact: np.ndarray
    stability: float
    seconds: float
    state_share: float


def _reference(inner: AbstractInnerSolver, start: Start) -> _Reference:
    problem, params, hparams, key = start
    steps = {name: option for name, option in inner.options.items() if name != "tol"}  # all of them
    estimator = Reverse(eqx.tree_at(lambda inner: inner.options, inner, steps), checkpoints="sqrt")
    state = estimator.init(problem, params, hparams)
    estimate, _ = estimator.step(problem, hparams, state, key)
    exact = _flat(estimate.hypergradient)
    if not np.all(np.isfinite(exact)) or not np.any(exact):
        hint = "ES estimates that of a smoothed loss"
        raise ValueError(f"the exact hypergradient is zero or not finite: there is nothing to compare with; {hint}")
    weights = state.inner.partitioned.arrays
    trained = lambda start, end: None if start is None else end
    ends = jax.tree.map(trained, weights, estimate.partitioned.arrays, is_leaf=lambda leaf: leaf is None)
    first, last = (ravel_pytree(tree)[0] for tree in (weights, ends))
    _, unravel = ravel_pytree(weights)
    noise = jax.random.normal(jax.random.fold_in(key, 2**30), first.shape, first.dtype)
    # Relative to the weights, and to what training changes: weights may start at zero.
    typical = jnp.abs(first) + jnp.sqrt(jnp.mean(jnp.abs(last - first) ** 2))
    moved = state.inner.partitioned.with_arrays(unravel(first + DISTURBANCE * typical * noise))
    elsewhere = eqx.tree_at(lambda s: s.inner.partitioned, state, moved)
    stability = _similarity(_flat(estimator.step(problem, hparams, elsewhere, key)[0].hypergradient), exact)
    train = lambda *args: (inner.solve(*args)[0].partitioned.arrays, args[2])  # always from the start
    seconds, _, _ = _timed(train, problem, hparams, state.inner, key)
    state_share = 0.0
    if state.inner.partitioned.layer_state is not None:
        constant, _ = estimator.step(_with_constant_state(problem), hparams, state, key)
        state_share = float(np.linalg.norm(exact - _flat(constant.hypergradient)) / np.linalg.norm(exact))
    return _Reference(inner, exact, stability, seconds, state_share)


def _with_constant_state(problem: BilevelProblem) -> BilevelProblem:
    """Returns the problem with losses through whose state of layers no derivative goes."""
    stop = lambda leaf: jax.lax.stop_gradient(leaf) if eqx.is_array(leaf) else leaf
    held = lambda params: (params[0], jax.tree.map(stop, params[1]))

    def inner_loss(params: PyTree, *args: Any) -> tuple[Array, PyTree]:
        value, state = problem.inner_loss(held(params), *args)
        return value, jax.tree.map(stop, state)

    outer_loss = lambda params, *args: problem.outer_loss(held(params), *args)
    return eqx.tree_at(lambda p: (p.inner_loss, p.outer_loss), problem, (inner_loss, outer_loss))


def _timed(
    function: Callable[..., tuple[Any, PyTree]], problem: BilevelProblem, hparams: PyTree, state: PyTree, key: Array
) -> tuple[float, int, Any]:
    """Returns the seconds of a call from the state that the first one returns, the temporary bytes, the first result.

    The first step of an estimator measures its error too, which most later ones do not.
    """
    arrays, rest = eqx.partition((problem, hparams, state, key), eqx.is_array)

    @jax.jit
    def step(arrays: PyTree) -> tuple[Any, PyTree]:
        result, after = function(*eqx.combine(arrays, rest))
        return result, eqx.filter(after, eqx.is_array)

    compiled = step.lower(arrays).compile()
    memory = compiled.memory_analysis()
    result, after = compiled(arrays)
    arrays, times = (*arrays[:2], after, arrays[3]), []
    for _ in range(3):
        started = time.perf_counter()
        jax.block_until_ready(compiled(arrays))
        times.append(time.perf_counter() - started)
    return float(np.median(times)), memory.temp_size_in_bytes if memory else 0, result


def _spread(estimator: Any, start: Start, state: Any, num_keys: int) -> float:
    """Returns ‖standard deviation‖/‖mean‖ of the hypergradient over keys."""
    problem, params, hparams, key = start
    if not any(enters(lambda key: estimator.step(problem, hparams, state, key)[0].hypergradient, key)):
        return 0.0
    if not num_keys:
        return float("nan")
    found = spread(problem, estimator, params, hparams, key=key, num_keys=num_keys)
    return float(np.linalg.norm(_flat(found.hypergradient_std)) / np.linalg.norm(_flat(found.hypergradient)))


def _examine(name: str, estimator: Any, start: Start, reference: _Reference, num_keys: int) -> Finding:
    problem, params, hparams, key = start
    state, exact = estimator.init(problem, params, hparams), reference.exact

    def step(*args: Any) -> tuple[tuple[PyTree, Stats], PyTree]:
        estimate, after = estimator.step(*args)
        return (estimate.hypergradient, estimate.stats), after

    seconds, memory, (hypergradient, stats) = _timed(step, problem, hparams, state, key)
    found = _flat(hypergradient)
    reported = lambda name: float(stats.diagnostics.get(name, jnp.nan))
    return Finding(
        name=name,
        cosine=_cosine(found, exact) if np.all(np.isfinite(found)) else float("nan"),
        norm_ratio=float(np.linalg.norm(found) / np.linalg.norm(exact)),
        runs=seconds / reference.seconds,
        gradients=int(stats.counts.gradients),
        memory=memory,
        growth=reported("growth"),
        error=float(np.linalg.norm(found - exact) / np.linalg.norm(exact)),
        measured_error=reported("relative_error"),
        error_bound=reported("error_bound"),
        spread=_spread(estimator, start, state, num_keys),
        stability=reference.stability,
        status=Status(int(stats.status)),
        steps=estimator.inner.num_steps,
        state_share=reference.state_share,
    )
