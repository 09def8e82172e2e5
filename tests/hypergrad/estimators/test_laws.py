"""The contract: every estimator against every law that holds for it."""

import jax
import jax.numpy as jnp
import optax
import pytest
from hypothesis import given

import hypergrad as hg
from hypergrad.testing import Claim, check_estimator, laws
from hypergrad.testing.problems import OPTIMISERS, quadratic, ridge
from hypergrad.testing.strategies import seeds

STEPS = 6
INNER = {name: hg.OptaxSolver(optimiser, STEPS) for name, optimiser in OPTIMISERS.items()}
LONG = hg.OptaxSolver(optax.sgd(0.3), 2000)

ESTIMATORS = {
    "reverse": (hg.Reverse, Claim.EXACT),
    "forward": (hg.Forward, Claim.EXACT),
    "drmad": (hg.DrMAD, Claim.QUADRATIC),
    "greedy": (hg.Greedy, Claim.APPROXIMATE),
    "implicit cg": (lambda inner: hg.Implicit(inner, hg.CG(6, rtol=1e-13)), Claim.STATIONARY),
    "hoag": (lambda inner: hg.HOAG(inner, hg.CG(6, rtol=1e-13)), Claim.APPROXIMATE),
}
VARIANTS = {
    "reverse sqrt": (lambda inner: hg.Reverse(inner, checkpoints="sqrt"), Claim.EXACT),
    "reverse, nothing again": (lambda inner: hg.Reverse(inner, remat=False), Claim.EXACT),
    "reverse, two states": (lambda inner: hg.Reverse(inner, checkpoints=2), Claim.EXACT),
    "reverse, horizon 2": (lambda inner: hg.Reverse(inner, horizon=2), Claim.APPROXIMATE),
    "reverse warm": (lambda inner: hg.Reverse(inner, warm_start=True), Claim.APPROXIMATE),
    "forward warm": (lambda inner: hg.Forward(inner, warm_start=True), Claim.EXACT),
    "drmad, every knot": (lambda inner: hg.DrMAD(inner, knots=inner.num_steps), Claim.EXACT),
    "drmad, cubics over two steps": (
        lambda inner: hg.DrMAD(inner, knots=-(-inner.num_steps // 2), cubic=True),
        Claim.EXACT,
    ),
    "greedy, decay": (lambda inner: hg.Greedy(inner, decay=0.9, warm_start=False), Claim.APPROXIMATE),
    "implicit minres": (lambda inner: hg.Implicit(inner, hg.MINRES(8, rtol=1e-13)), Claim.STATIONARY),
    "implicit dense": (lambda inner: hg.Implicit(inner, hg.Dense()), Claim.STATIONARY),
    "implicit neumann": (lambda inner: hg.Implicit(inner, hg.Neumann(5, step_size=0.2)), Claim.APPROXIMATE),
}
NUMBERS = (laws.plain_scan, laws.is_reverse, laws.closed_form)
FORM = (laws.constants_and_scale, laws.batched_is_one_by_one, laws.state_is_a_fixed_point)
MANY_PROGRAMS = (laws.finite_differences, laws.compiled_is_not_compiled)
every = pytest.mark.parametrize(("make", "claim"), ESTIMATORS.values(), ids=ESTIMATORS)


@pytest.mark.row(2, 5, 6, 7, 9, 10, 14, 16, 18)
@pytest.mark.variants(slow=["reverse", "drmad", "greedy", "implicit cg"])
@every
def test_estimators_keep_the_laws_of_their_claim(make, claim):
    check_estimator(make, claim=claim, examples=8, without=MANY_PROGRAMS)


@pytest.mark.row(1, 11)
@pytest.mark.variants(slow=["reverse", "implicit cg"])
@every
def test_estimators_keep_the_laws_of_many_programs(make, claim):
    check_estimator(make, claim=claim, examples=8, only=MANY_PROGRAMS)


@pytest.mark.slow
@pytest.mark.row(1, 2, 7, 11)
def test_reverse_mode_keeps_the_laws_of_numbers_and_of_many_programs():
    """Among the quick tests too, because the other estimators are held to it."""
    sgd = {"sgd": OPTIMISERS["sgd"]}
    check_estimator(hg.Reverse, claim=Claim.EXACT, only=NUMBERS + MANY_PROGRAMS, optimisers=sgd)


@pytest.mark.row(1, 2, 7, 10, 16)
@pytest.mark.sweep
@pytest.mark.parametrize(("make", "claim"), VARIANTS.values(), ids=VARIANTS)
def test_variants_keep_the_laws_of_numbers_and_form(make, claim):
    """The same code with another setting: numbers and form, not all that they follow from."""
    check_estimator(make, claim=claim, only=NUMBERS + FORM)


MOMENTUM = {"momentum": hg.MomentumSGD(0.1, 0.9), "slow": hg.MomentumSGD(lambda hparams, t: 0.1 / (1 + t), 0.5)}
REVERSIBLE = {
    "floating point": lambda inner: hg.Reversible(inner, rtol=1e-13),
    "integers": lambda inner: hg.Reversible(inner, exact=True),
}


@pytest.mark.variants(slow=["integers"])
@pytest.mark.row(1, 7, 10, 16)
@pytest.mark.parametrize("make", REVERSIBLE.values(), ids=REVERSIBLE)
def test_training_run_backwards_keeps_the_laws(make):
    check_estimator(make, claim=Claim.EXACT, optimisers=MOMENTUM, only=(laws.finite_differences, *FORM))


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("decay", [0.0, 0.9])
@given(seed=seeds)
def test_greedy_is_reverse_at_one_step(optimiser, decay, seed):
    inner = hg.OptaxSolver(OPTIMISERS[optimiser], 1)
    laws.agree(hg.Greedy(inner, decay=decay), hg.Reverse(inner), ridge(seed))


def test_drmad_is_not_exact_where_the_hessian_changes():
    with pytest.raises(AssertionError, match="relative error"):
        laws.agree(hg.DrMAD(INNER["momentum"]), hg.Reverse(INNER["momentum"]), ridge())


@pytest.mark.parametrize("solver", [hg.CG(10, rtol=1e-14), hg.Neumann(2000, step_size=0.3)])
@given(seed=seeds)
def test_implicit_is_the_limit_of_reverse(solver, seed):
    case = quadratic(seed)
    laws.agree(hg.Implicit(LONG, solver), hg.Reverse(LONG), case, "solved")


@pytest.mark.variants(quick=["1"], slow=["7"])
@pytest.mark.parametrize("terms", [1, 7])
@given(seed=seeds)
def test_neumann_is_truncated_reverse_at_the_fixed_point(terms, seed):
    neumann = hg.Implicit(LONG, hg.Neumann(terms, step_size=0.3))
    laws.agree(neumann, hg.Reverse(LONG, horizon=terms), ridge(seed), "solved")


TOLERANCES = (1e-1, 1e-3, 1e-5, 1e-7, 1e-9)
TIGHTER = [hg.HOAG(LONG, hg.CG(20, rtol=0.0), schedule=hg.tolerances.exponential(first)) for first in TOLERANCES]


@pytest.mark.slow
@pytest.mark.row(4)
@given(seed=seeds)
def test_the_error_of_hoag_falls_with_its_tolerance(seed):
    case, errors = ridge(seed), []
    for estimator in TIGHTER:
        found = laws.answer(estimator, case)[1]["log_l2"]
        errors.append(float(jnp.linalg.norm(found - case.exact()["log_l2"])))
    for looser, tighter, tolerance in zip(errors, errors[1:], TOLERANCES[1:], strict=False):
        assert tighter < looser or tighter < 1e-12, errors
        assert tighter <= 1e4 * tolerance, errors


@pytest.mark.row(15)
@pytest.mark.parametrize("make", [make for make, _ in ESTIMATORS.values()], ids=ESTIMATORS)
def test_equal_steps_are_counted_equally(make):
    counts = laws.first_step(make(INNER["momentum"]), ridge())[0].stats.counts
    assert counts.iterations == STEPS
    assert counts.inner_gradients >= STEPS
    assert counts.outer_gradients >= 1
    weighed = counts.inner_gradients + counts.outer_gradients + counts.hvps + 2 * counts.step_vjps
    assert counts.gradients == weighed


@pytest.mark.parametrize("num_steps", [1, 4])
@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_outer_gradients_of_greedy_are_all_counted(decay, num_steps):
    case, taken = ridge(), []
    old = case.problem

    def outer_loss(w, hparams, data, key):
        jax.debug.callback(lambda: taken.append(1))
        return old.outer_loss(w, hparams, data, key)

    problem = hg.BilevelProblem(old.inner_loss, outer_loss, old.train, old.valid)
    estimator = hg.Greedy(INNER["momentum"].with_num_steps(num_steps), decay=decay, check=None)
    state = estimator.init(problem, case.params, case.hparams)
    jax.effects_barrier()
    taken.clear()
    estimate, _ = estimator.step(problem, case.hparams, state, laws.KEY)
    jax.effects_barrier()
    assert estimate.stats.counts.outer_gradients == len(taken)
