"""Neither devices nor strictness of types change an answer."""

import re
from collections import Counter

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import ensembles as ens
import hypergrad as hg
from hypergrad.testing import Case, assert_close, laws
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
@pytest.mark.variants(quick=["reverse"], slow=["greedy", "hoag", "drmad"])
@every
def test_rows_spread_over_devices_change_nothing(estimator):
    assert len(jax.devices()) == 4
    mesh = jax.make_mesh((4,), ("rows",), axis_types=(AxisType.Auto,))
    by_rows = NamedSharding(mesh, PartitionSpec("rows"))
    case = ridge(num_rows=8)
    spread = {name: jax.device_put(case.problem.train[name], by_rows) for name in ("x", "y")}
    assert len(spread["x"].sharding.device_set) == 4
    assert_close(laws.answer(estimator, case.replace(train=spread)), laws.answer(estimator, case))


@pytest.mark.variants(slow=["implicit", "greedy", "reverse", "hoag", "drmad"])
@every
def test_types_are_never_promoted(estimator):
    case = ridge()
    with jax.numpy_dtype_promotion("strict"):
        search = hg.GradientSearch(estimator, hg.adaptive_step())
        state = search.init(case.problem, case.params, case.hparams)
        state, _ = hg.run(search, case.problem, state, key=laws.KEY, budget=8)
    assert jnp.isfinite(state.best.value)


@pytest.mark.slow
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
    laws.closed_form(hg.Implicit(inner, hg.CG(10, rtol=1e-14)), case)


MESH = jax.make_mesh((4,), ("parts",), axis_types=(AxisType.Auto,))
PARTS = NamedSharding(MESH, PartitionSpec("parts"))


def spread_rows():
    case = ridge(num_rows=8)
    return case.replace(train={name: jax.device_put(case.problem.train[name], PARTS) for name in ("x", "y")})


def spread_replicas():
    case = ridge()
    losses = (ens.replicate_loss(loss) for loss in (case.problem.inner_loss, case.problem.outer_loss))
    problem = hg.BilevelProblem(*losses, case.problem.train, case.problem.valid)
    replicas = case.params * jnp.arange(1.0, 9.0)[:, None]
    return Case(problem, jax.device_put(replicas, PARTS), case.hparams)


def spread_replicas_with_hparams():
    """Every replica has hyperparameters of its own, on its device."""
    case = ridge()
    alone = lambda loss: lambda w, h, data, key: jnp.sum(jax.vmap(loss, (0, 0, None, None))(w, h, data, key))
    losses = (alone(loss) for loss in (case.problem.inner_loss, case.problem.outer_loss))
    problem = hg.BilevelProblem(*losses, case.problem.train, case.problem.valid)
    place = lambda leaf: jax.device_put(jnp.stack([leaf] * 8), PARTS)
    return Case(problem, place(case.params), jax.tree.map(place, case.hparams))


SPREAD = {"rows": spread_rows, "replicas": spread_replicas, "replicas and hparams": spread_replicas_with_hparams}
WARM = {
    "reverse": hg.Reverse(INNER, warm_start=True, check=None),
    "segments": hg.Reverse(INNER, warm_start=True, check=None, checkpoints="sqrt"),
    "drmad": hg.DrMAD(INNER, check=None, warm_start=True),
    "greedy": hg.Greedy(INNER, check=None),
    "reversible": hg.Reversible(hg.OptaxSolver(hg.MomentumSGD(0.1, 0.9), 4), check=None),
}
# All-reduces inside of loops: one per training step and one per step back are the least for gradients of rows that are
# spread. A replica needs none, but for the derivative by hyperparameters that all replicas share, and for DrMAD's limit
# on the adjoint, which is asked at every step. Segments train twice.
IN_LOOPS = {
    "rows": {"reverse": 2, "segments": 3, "drmad": 2, "greedy": 1, "reversible": 2},
    "replicas": {"reverse": 1, "segments": 1, "drmad": 1, "greedy": 0, "reversible": 1},
    "replicas and hparams": {"reverse": 0, "segments": 0, "drmad": 1, "greedy": 0, "reversible": 0},
}
COLLECTIVE = re.compile(r" (all-\w+|collective-permute|reduce-scatter)(?:-start)?\(")


def collectives(program):
    """Counts of collectives in the text of a program, inside of loops and outside."""
    computations, name = {}, None
    for line in program.splitlines():
        if begins := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line):
            name = begins.group(1)
        computations.setdefault(name, []).append(line)
    called = lambda line: re.findall(r"(?:body|condition|to_apply|calls|computation)=%?([\w.\-]+)", line)
    pending = [c for lines in computations.values() for line in lines if " while(" in line for c in called(line)]
    looped = set()
    while pending:
        if (here := pending.pop()) not in looped:
            looped.add(here)
            pending += [c for line in computations.get(here, ()) for c in called(line)]
    count = lambda chosen: Counter(op for n in chosen for line in computations[n] for op in COLLECTIVE.findall(line))
    return count(looped & set(computations)), count(set(computations) - looped)


@pytest.mark.variants(quick=["reverse-*", "greedy-rows"], slow=["segments-rows", "drmad-replicas", "greedy-replicas"])
@pytest.mark.parametrize("spread", SPREAD)
@pytest.mark.parametrize("name", WARM)
def test_nothing_is_gathered_and_steps_sum_over_devices_only_where_gradients_need_it(name, spread):
    case, estimator = SPREAD[spread](), WARM[name]
    state = estimator.init(case.problem, case.params, case.hparams)
    arrays, rest = eqx.partition((case.problem, case.hparams, state, laws.KEY), eqx.is_array)
    step = lambda arrays: eqx.filter(estimator.step(*eqx.combine(arrays, rest)), eqx.is_array)
    looped, outside = collectives(jax.jit(step).lower(arrays).compile().as_text())
    assert set(looped | outside) == {"all-reduce"}
    assert looped["all-reduce"] == IN_LOOPS[spread][name]
    most = 5 if name == "reversible" else 4  # losses, growth and unit of the adjoint; an error of reversal
    assert outside["all-reduce"] <= most


@pytest.mark.parametrize("estimator", [hg.DrMAD(INNER), hg.Implicit(INNER, hg.linear.SGD(3, step_size=0.1))])
def test_the_measured_error_and_a_stochastic_solve_gather_nothing(estimator):
    case = spread_replicas_with_hparams()
    state = estimator.init(case.problem, case.params, case.hparams)
    arrays, rest = eqx.partition((case.problem, case.hparams, state, laws.KEY), eqx.is_array)
    step = lambda arrays: eqx.filter(estimator.step(*eqx.combine(arrays, rest)), eqx.is_array)
    looped, outside = collectives(jax.jit(step).lower(arrays).compile().as_text())
    assert set(looped | outside) == {"all-reduce"}


@pytest.mark.parametrize("spread", [spread_rows, spread_replicas])
def test_a_search_places_its_state_once(spread):
    """Else the second step would be compiled anew."""
    case = spread()
    search = hg.GradientSearch(WARM["reverse"], optax.adam(0.1))
    before = search.init(case.problem, case.params, case.hparams)
    after, _ = search.step(case.problem, before, laws.KEY)
    for one, other in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert one.committed == other.committed and one.sharding.is_equivalent_to(other.sharding, one.ndim)


@pytest.mark.slow
def test_arrays_on_explicit_axes_are_named_outside_of_their_mesh():
    """The default of `jax.make_mesh`. What a run makes for itself is on no mesh, and JAX does not join the two."""
    mesh = jax.make_mesh((4,), ("rows",), axis_types=(AxisType.Explicit,))
    case, search = ridge(num_rows=8), hg.GradientSearch(ESTIMATORS["reverse"], optax.adam(0.1))
    rows, copied = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("rows",), ()))
    spread = hg.BilevelProblem(
        case.problem.inner_loss,
        case.problem.outer_loss,
        jax.device_put(
            case.problem.train, jax.tree.map(lambda leaf: rows if leaf.ndim else copied, case.problem.train)
        ),
        jax.device_put(case.problem.valid, copied),
    )
    params, hparams = jax.device_put((case.params, case.hparams), copied)

    def run(problem):
        return hg.run(search, problem, search.init(problem, params, hparams), key=laws.KEY, budget=12)[1].value

    with pytest.raises(ValueError, match=r"^problem\.train.* lies on a mesh with explicit axes"):
        run(spread)
    with jax.set_mesh(mesh):
        inside = run(spread)
    state = search.init(case.problem, case.params, case.hparams)
    assert_close(inside, hg.run(search, case.problem, state, key=laws.KEY, budget=12)[1].value)
