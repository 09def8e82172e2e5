"""The laws that hypergradients obey. Each function raises AssertionError where its law is broken.

A law takes an estimator and a `Case`; those that need a training run other than the estimator's take a function
`make` from an inner solver to an estimator, the inner solver, and the case.
"""

import itertools
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

import hypergrad as hg

from .changes import Rearrange, bend, in_other_hyperparameters, in_single_precision, single
from .problems import Case
from .tolerances import assert_close, ensure, flat

KEY = jax.random.key(7)
Make = Callable[[hg.AbstractInnerSolver], hg.AbstractEstimator]  # an estimator, its inner solver given


def answer(estimator: hg.AbstractEstimator, case: Case, key: Array = KEY) -> tuple[Array, PyTree]:
    """Returns `(value, hypergradient)` of one cold start."""
    return hg.value_and_hypergrad(case.problem, estimator)(case.hparams, case.params, key)


def first_step(estimator: hg.AbstractEstimator, case: Case) -> tuple[hg.Estimate, PyTree]:
    """Returns the estimate and the state after one step from a new state."""
    state = estimator.init(case.problem, case.params, case.hparams)
    return estimator.step(case.problem, case.hparams, state, KEY)


def differences(function: Callable[[PyTree], Array], hparams: PyTree, size: float = 5e-5) -> PyTree:
    """Returns the derivative of a number with respect to hyperparameters, by central differences of fourth order."""
    vector, unravel = ravel_pytree(hparams)
    found = []
    for i in range(len(vector)):
        at = lambda s, i=i: float(function(unravel(vector.at[i].add(s))))
        near, far = (at(s) - at(-s) for s in (size, 2 * size))
        found.append((8 * near - far) / (12 * size))
    return unravel(jnp.asarray(found))


def finite_differences(estimator: hg.AbstractEstimator, case: Case, size: float = 5e-5) -> None:
    """The hypergradient is the derivative of the value, by central differences of fourth order."""
    value = hg.value_and_hypergrad(case.problem, estimator)
    expected = differences(lambda h: value(h, case.params, KEY)[0], case.hparams, size)
    assert_close(answer(estimator, case)[1], expected, "difference")


def plain_scan(make: Make, inner: hg.AbstractInnerSolver, case: Case) -> None:
    """The hypergradient is that of `jax.grad` through a scan over the optimiser, written without this library."""
    value, expected = scanned(case.problem, inner.options["opt"], inner.num_steps, case.params, case.hparams)
    found_value, found = answer(make(inner), case)
    assert_close(found_value, value)
    assert_close(found, expected, "gradient")


@eqx.filter_jit
def scanned(
    problem: hg.BilevelProblem, optimiser: optax.GradientTransformation, steps: int, params: PyTree, hparams: PyTree
) -> tuple[Array, PyTree]:
    """Returns the outer loss after so many updates, and its derivative."""
    params, static = eqx.partition(params, eqx.is_inexact_array)

    def trained(hparams: PyTree) -> Array:
        def body(carry: PyTree, t: Array) -> tuple[PyTree, None]:
            params, state = carry
            key = jax.random.fold_in(KEY, t)
            loss = lambda p: problem.inner_loss(eqx.combine(p, static), hparams, problem.train, key)
            updates, state = optimiser.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        (end, _), _ = jax.lax.scan(body, (params, optimiser.init(params)), jnp.arange(steps))
        return problem.outer_loss(eqx.combine(end, static), hparams, problem.valid, jax.random.fold_in(KEY, steps))

    return jax.value_and_grad(trained)(hparams)


def agree(one: hg.AbstractEstimator, other: hg.AbstractEstimator, case: Case, kind: str = "gradient") -> None:
    """Two estimators give the same hypergradient."""
    assert_close(answer(one, case)[1], answer(other, case)[1], kind)


def is_reverse(make: Make, inner: hg.AbstractInnerSolver, case: Case) -> None:
    """The hypergradient is that of exact reverse mode."""
    agree(make(inner), hg.Reverse(inner), case)


def is_reverse_on_average(make: Make, inner: hg.AbstractInnerSolver, case: Case, draws: int = 4096) -> None:
    """The mean over keys is exact reverse mode, to five standard errors, if the losses use no key."""
    estimate = hg.value_and_hypergrad(case.problem, make(inner))
    found = jax.vmap(lambda key: estimate(case.hparams, case.params, key)[1])(jax.random.split(KEY, draws))
    found = jax.vmap(lambda tree: ravel_pytree(tree)[0])(found)
    expected = flat(answer(hg.Reverse(inner), case)[1])
    error = np.abs(np.mean(found, 0) - expected)
    # a thousandth for what an unbiased direction with a finite step leaves
    limit = 5 * np.std(found, 0) / np.sqrt(draws) + 1e-3 * np.linalg.norm(expected)
    worst = np.argmax(error - limit)
    ensure(np.all(error <= limit), f"error of the mean {error[worst]:.3g} > {limit[worst]:.3g} (coordinate {worst})")


def closed_form(estimator: hg.AbstractEstimator, case: Case) -> None:
    """The hypergradient is that of the solved inner problem, in closed form."""
    if case.exact is None:
        raise ValueError("this case has no closed form")
    assert_close(answer(estimator, case)[1], case.exact(), "solved")


def scale_of_the_inner_loss(estimator: hg.AbstractEstimator, case: Case) -> None:
    """A multiple of the inner loss has the same minimiser, hence the same hypergradient."""
    closed_form(estimator, case.replace(train={"scale": jnp.asarray(0.6)}))


def chain_rule(estimator: hg.AbstractEstimator, case: Case) -> None:
    """The hypergradient in μ, with λ = g(μ), is the pullback of the one in λ."""
    at, pullback = jax.vjp(bend, case.hparams)
    expected = pullback(answer(estimator, case.replace(hparams=at))[1])[0]
    assert_close(answer(estimator, in_other_hyperparameters(case, bend, case.hparams))[1], expected, "gradient")


def any_pytree(estimator: hg.AbstractEstimator, case: Case, layout: PyTree | None = None) -> None:
    """Hyperparameters in another pytree (`layout`, of as many numbers) have the same hypergradient in that pytree."""
    vector, _ = ravel_pytree(case.hparams)
    layout = (vector[:1], {"rest": [vector[1:, None]], "none": None}) if layout is None else layout
    moved = Rearrange(jax.eval_shape(lambda: layout))(case.hparams)
    found = answer(estimator, in_other_hyperparameters(case, Rearrange(jax.eval_shape(lambda: case.hparams)), moved))[1]
    expected = answer(estimator, case)[1]
    ensure(jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, moved), f"not of the form of hparams: {found}")
    assert_close(found, expected, "gradient")


def constants_and_scale(estimator: hg.AbstractEstimator, case: Case) -> None:
    """Constants change nothing; the hypergradient is linear in the outer loss."""
    expected = answer(estimator, case)[1]
    shift = {"shift": jnp.asarray(3.0)}
    assert_close(answer(estimator, case.replace(train=shift, valid=shift))[1], expected, "gradient")
    for scale in (-2.5, 1e-6):  # the small one for absolute tolerances
        scaled = answer(estimator, case.replace(valid={"scale": jnp.asarray(scale)}))[1]
        assert_close(scaled, jax.tree.map(lambda g: scale * g, expected), "gradient")  # noqa: B023


def unused_is_zero(estimator: hg.AbstractEstimator, case: Case) -> None:
    """A hyperparameter that changes nothing has hypergradient zero."""
    found = float(answer(estimator, case)[1]["unused"])
    ensure(found == 0, f"found {found:.3g}")


def order_of_rows(estimator: hg.AbstractEstimator, case: Case) -> None:
    """Neither the order of the rows matters nor a second copy of the data."""
    train, expected = case.problem.train, answer(estimator, case)[1]
    rows = np.random.default_rng(0).permutation(len(train["y"]))
    reordered = {name: train[name][rows] for name in ("x", "y")}
    assert_close(answer(estimator, case.replace(train=reordered))[1], expected, "gradient")
    doubled = {name: jnp.concatenate([train[name]] * 2) for name in ("x", "y")}
    assert_close(answer(estimator, case.replace(train=doubled))[1], expected, "gradient")


def order_of_weights(estimator: hg.AbstractEstimator, case: Case) -> None:
    """Weights in another order, with their hyperparameters, have the same hypergradient in that order."""
    order = np.roll(np.arange(len(case.params)), 1)
    moved = lambda data: data | {"x": data["x"][:, order]}
    renamed = case.replace(
        train=moved(case.problem.train),
        valid=moved(case.problem.valid),
        params=case.params[order],
        hparams=case.hparams | {"log_l2": case.hparams["log_l2"][order]},
    )
    expected = answer(estimator, case)[1]
    expected = expected | {"log_l2": expected["log_l2"][order]}
    assert_close(answer(estimator, renamed)[1], expected, "gradient")


def batched_is_one_by_one(estimator: hg.AbstractEstimator, case: Case) -> None:
    """A batch of problems has the answers of one problem at a time: vmap = loop."""
    many = jax.tree.map(lambda h: jnp.stack([h, h - 0.5, h + 0.3]), case.hparams)
    function = hg.value_and_hypergrad(case.problem, estimator)
    values, found = jax.vmap(lambda h: function(h, case.params, KEY))(many)
    for i in range(3):
        value, expected = function(jax.tree.map(lambda h: h[i], many), case.params, KEY)  # noqa: B023
        assert_close(values[i], value)
        assert_close(jax.tree.map(lambda g: g[i], found), expected, "gradient")  # noqa: B023


def compiled_is_not_compiled(estimator: hg.AbstractEstimator, case: Case) -> None:
    """A compiled step has the answer of a step that is not compiled: jit = no jit."""
    expected = answer(estimator, case)
    with jax.disable_jit():
        assert_close(answer(estimator, case), expected, "gradient")


def float32_is_near_float64(estimator: hg.AbstractEstimator, case: Case) -> None:
    """A float32 problem has a float32 answer, near the one in float64."""
    found = answer(estimator, in_single_precision(case))
    kinds = {str(leaf.dtype) for leaf in jax.tree.leaves(found)}
    ensure(kinds == {"float32"}, f"value and hypergradient are of type {', '.join(sorted(kinds))}")
    assert_close(found, single(answer(estimator, case)), "gradient")


def state_is_a_fixed_point(estimator: hg.AbstractEstimator, case: Case) -> None:
    """Structure, shapes, types and weak types of the state do not change, and one trace serves all steps."""
    count = itertools.count()
    inner_loss = lambda *args: (next(count), case.problem.inner_loss(*args))[1]
    problem = hg.BilevelProblem(inner_loss, case.problem.outer_loss, case.problem.train, case.problem.valid)
    state = estimator.init(problem, case.params, case.hparams)
    form = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), tree)
    kind = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
    first = form(state)
    hparams, traces = case.hparams, 0
    for k in range(3):
        estimate, state = estimator.step(problem, hparams, state, jax.random.fold_in(KEY, k))
        ensure(form(state) == first, f"the state was of the form\n {first}\nafter step {k}\n {form(state)}")
        found, expected = (kind(tree) for tree in (estimate.hypergradient, hparams))
        ensure(found == expected, f"hyperparameters of the form {expected}, hypergradient {found}")
        hparams = jax.tree.map(lambda h: h + 0.01, hparams)
        traces = traces or next(count)
    ensure(next(count) == traces + 1, "step was traced again at its second or third call (is it under eqx.filter_jit?)")


def value_is_measured(estimator: hg.AbstractEstimator, case: Case) -> None:
    """`value` is the outer loss of the returned `params` at the given hyperparameters, if the losses use no key."""
    estimate, _ = first_step(estimator, case)
    assert_close(
        estimate.value, case.problem.outer_loss(estimate.params, case.hparams, case.problem.valid, KEY), "gradient"
    )


def steps_are_counted(estimator: hg.AbstractEstimator, case: Case) -> None:
    """Every step counts the updates and the gradients that a budget is made of, in 32 bits whatever the precision."""
    counts = first_step(estimator, case)[0].stats.counts
    for name in ("iterations", "gradients"):
        number = getattr(counts, name)
        ensure(number.dtype == jnp.int32 and number > 0, f"counts.{name} is {number} of type {number.dtype}")
    wide = {str(leaf.dtype) for leaf in jax.tree.leaves(counts)} - {"int32", "uint32"}
    ensure(not wide, f"counts of type {', '.join(sorted(wide))}, with which no state of a search is a fixed point")


def same_call_same_bits(estimator: hg.AbstractEstimator, case: Case) -> None:
    """Called twice with the same arguments an estimator gives the same bits, and the caller's arrays survive."""
    one, other = (first_step(estimator, case)[0] for _ in range(2))
    same = all(map(np.array_equal, *(jax.tree.leaves((e.value, e.hypergradient)) for e in (one, other))))
    ensure(same, f"found {one.hypergradient}, then {other.hypergradient}")
    arrays = jax.tree.leaves((case.params, case.hparams, case.problem.train, case.problem.valid))
    ensure(not any(leaf.is_deleted() for leaf in arrays if isinstance(leaf, jax.Array)), "an argument was deleted")
