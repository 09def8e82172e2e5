"""Hyperparameters of which a step reads few rows: the sums are those over whole arrays, the work that of the rows."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.interpreters import partial_eval

import hypergrad as hg
from hypergrad.estimators.common.rows import read_by_rows
from hypergrad.estimators.common.trail import rows_in_trail, trail_by_rows
from hypergrad.testing import assert_close, laws

ROWS, SIZE = 5000, 8
SOLVER = hg.OptaxSolver(optax.sgd(0.1, 0.5), 20)


@jax.jit
def taken(weights, rows):
    return jnp.take(weights, rows)


def inner_loss(w, h, data, key):
    """Weights read in four ways: by an index, in a function compiled by itself, two at a time, and also as a whole."""
    rows = data["row"]
    weight = (
        jax.nn.sigmoid(h["one"][rows]) + taken(h["taken"], rows) + jnp.prod(h["two"][rows], axis=1) + h["all"][rows]
    )
    fit = jnp.mean(weight * (data["x"] @ w - data["y"]) ** 2)
    return fit + jnp.exp(h["log_l2"]) * jnp.sum(w**2) + jnp.mean(h["all"] ** 2) * jnp.sum(w)


def outer_loss(w, h, data, key):
    return jnp.mean((data["x"] @ w - data["y"]) ** 2)


def weighted():
    """A weight for every two rows, so that one row of weights is read several times in a step."""
    rng = np.random.default_rng(0)
    data = {"x": rng.normal(size=(ROWS, 3)), "y": rng.normal(size=ROWS), "row": np.arange(ROWS, dtype=np.int32) // 2}
    draw = lambda *shape: jnp.asarray(rng.uniform(0.5, 1.0, size=shape))
    hparams = {"one": draw(ROWS), "taken": draw(ROWS), "two": draw(ROWS, 2), "all": draw(ROWS)}
    few = {"x": data["x"][:40].repeat(2, 0), "y": data["y"][:80], "row": data["row"][:80] // 8}
    problem = hg.BilevelProblem(inner_loss, outer_loss, hg.Batches(few, SIZE), data)
    return problem, jnp.zeros(3), hparams | {"log_l2": jnp.asarray(-1.0)}


def training():
    problem, params, hparams = weighted()
    run = hg.Training(SOLVER, problem, hparams, laws.KEY)
    return run, run.begin(SOLVER.init(problem, params, hparams), warm_start=False)


@pytest.mark.variants(quick=["0.2"], slow=["0.9", "1.0"])
@pytest.mark.parametrize("decay", [1.0, 0.9, 0.2])
def test_sums_over_rows_are_those_over_whole_arrays(decay):
    """Decays that are arrays, of unknown value, are not taken apart. With 0.2 all rows are multiplied on the way."""
    problem, params, hparams = weighted()
    found, right = (
        hg.value_and_hypergrad(problem, hg.Greedy(SOLVER, decay=one, warm_start=False, check=None))(
            hparams, params, laws.KEY
        )
        for one in (decay, jnp.asarray(decay))
    )
    assert_close(found, right)
    assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(right))


def test_arrays_that_enter_through_gathers_alone_are_found():
    run, start = training()
    names = [path[0].key for path, _ in jax.tree.leaves_with_path(run.hparams)]
    assert {names[number] for number in read_by_rows(run, start).numbers} == {"one", "taken", "two"}
    assert rows_in_trail(run, start, 0.01, 19) is rows_in_trail(run, start, jnp.asarray(0.9), 19) is None


def test_half_precision_is_added_up_as_a_whole():
    """Values that are divided by a factor of 1e-6 leave the range of float16."""
    problem, params, hparams = weighted()
    half = hparams | {"one": hparams["one"].astype(jnp.float16), "taken": hparams["taken"].astype(jnp.bfloat16)}
    run = hg.Training(SOLVER, problem, half, laws.KEY)
    start = run.begin(SOLVER.init(problem, params, half), warm_start=False)
    names = [path[0].key for path, _ in jax.tree.leaves_with_path(half)]
    assert {names[number] for number in rows_in_trail(run, start, 0.9, 19).numbers} == {"two"}


def loops(jaxpr):
    """The bodies of all loops, the outer ones first."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("while", "scan"):
            yield equation.params.get("body_jaxpr", equation.params.get("jaxpr")).jaxpr
        for inside in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda one: hasattr(one, "jaxpr")):
            if hasattr(inside, "jaxpr"):
                yield from loops(inside.jaxpr)


def test_a_step_touches_the_rows_that_it_read():
    run, start = training()
    by_rows = read_by_rows(run, start)
    jaxpr = jax.make_jaxpr(lambda start: trail_by_rows(run, start, 0.9, 19, by_rows))(start)
    names = lambda jaxpr: [
        one.primitive.name for one in jaxpr.eqns if any(v.aval.size == 2 * ROWS for v in one.outvars)
    ]
    used = [partial_eval.dce_jaxpr(body, [True] * len(body.outvars))[0] for body in loops(jaxpr.jaxpr)]
    outer, inner = filter(None, map(names, used))
    assert inner == ["scatter-add"] and outer == ["while", "mul"]


def test_a_step_is_traced_once_for_the_rows_that_it_reads_and_its_derivative():
    """The three other calls are those of the checks."""
    problem, params, hparams = weighted()
    calls = []

    def inner_loss(*arguments):
        calls.append(None)
        return problem.inner_loss(*arguments)

    counted = hg.BilevelProblem(inner_loss, problem.outer_loss, problem.train, problem.valid)
    greedy = hg.Greedy(SOLVER, decay=0.9, warm_start=False, check=None)
    eqx.filter_eval_shape(hg.value_and_hypergrad(counted, greedy), hparams, params, laws.KEY)
    assert 0 < len(calls) <= 4
