"""Neither devices nor strictness of types change an answer."""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import hypergrad as hg
from hypergrad.testing import assert_close, laws
from hypergrad.testing.problems import ridge

INNER = hg.OptaxSolver(optax.sgd(0.1, 0.9), 4)
ESTIMATORS = {
    "reverse": hg.Reverse(INNER),
    "reverse sqrt": hg.Reverse(INNER, checkpoints="sqrt"),
    "drmad": hg.DrMAD(INNER, knots=2),
    "greedy": hg.Greedy(INNER, decay=0.9),
    "implicit": hg.Implicit(INNER),
    "hoag": hg.HOAG(INNER, hg.Neumann(5)),
}
every = pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)


@pytest.mark.row(12)
@every
def test_rows_spread_over_devices_change_nothing(estimator):
    assert len(jax.devices()) == 4
    mesh = jax.make_mesh((4,), ("rows",), axis_types=(AxisType.Auto,))
    by_rows = NamedSharding(mesh, PartitionSpec("rows"))
    case = ridge(num_rows=8)
    spread = {name: jax.device_put(case.problem.train[name], by_rows) for name in ("x", "y")}
    assert len(spread["x"].sharding.device_set) == 4
    assert_close(laws.answer(estimator, case.replace(train=spread)), laws.answer(estimator, case))


@every
def test_types_are_never_promoted(estimator):
    case = ridge()
    with jax.numpy_dtype_promotion("strict"):
        search = hg.GradientSearch(estimator, hg.adaptive_step())
        state = search.init(case.problem, case.params, case.hparams)
        state, _ = hg.run(search, case.problem, state, key=laws.KEY, budget=8)
    assert jnp.isfinite(state.best.value)


@pytest.mark.row(10)
def test_searches_side_by_side_are_searches_one_by_one():
    case, search = ridge(), hg.GradientSearch(hg.DrMAD(INNER), optax.adam(0.1))
    starts = [case.hparams, jax.tree.map(lambda h: h + 0.4, case.hparams)]
    states = [search.init(case.problem, case.params, hparams) for hparams in starts]
    together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    step = lambda state: search.step(case.problem, state, laws.KEY)[0]
    for _ in range(2):
        states, together = [step(state) for state in states], jax.vmap(step)(together)
    for i, state in enumerate(states):
        member = jax.tree.map(lambda leaf: leaf[i], together)  # noqa: B023
        assert_close(member.hparams, state.hparams, "gradient")
        assert_close(member.best.value, state.best.value)


@pytest.mark.row(7)
@pytest.mark.parametrize("factor", [1e-3, 40.0])
def test_an_implicit_hypergradient_is_blind_to_the_scale_of_the_inner_loss(factor):
    """The solution and H⁻¹B stay as they are."""
    inner = hg.OptaxSolver(optax.sgd(0.3 / factor), 2000)
    case = ridge().replace(train={"scale": jnp.asarray(factor)})
    laws.closed_form(hg.Implicit(inner, hg.CG(10, tol=1e-14)), case)
