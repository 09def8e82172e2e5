"""Every inner solver: from any state the hypergradient is the derivative of the next step's value, or it is refused."""

import jax
import jax.numpy as jnp
import jaxopt
import optax
import pytest
from optax import contrib

import hypergrad as hg
from hypergrad.testing import assert_close, check_inner_solver, laws, loosened, problems
from hypergrad.testing.optimisers import LEARNED, LINEAR, SMOOTH

ALL = ("Reverse", "Reverse, warm", "DrMAD, every knot, warm", "Greedy, one step", "Forward")
QUICK = {"adam": ("Reverse, warm",), "accumulation": ("DrMAD, every knot, warm",), "momo": ("Greedy, one step",)}
QUICK |= {"plateau": ("DrMAD, every knot, warm",)}  # its best loss is infinite at first
QUICK_LEARNED = {
    "injected rate": ALL,
    "learned rates": ("Reverse, warm",),
    "injected rates": ("DrMAD, every knot, warm",),
    "injected stateful rate": ("Reverse, warm",),
    "injected, accumulated": ("Greedy, one step",),
}
COLD = ("Reverse", "Forward")
SCHEDULED = ("learned rates", "injected rates", "injected stateful rate")  # no schedule counts one step


def solver(optimiser):
    return lambda steps: hg.OptaxSolver(optimiser, steps)


def estimators_for(name):
    """The estimators without `Greedy, one step` where a schedule would count one, and cold where a setting is of the
    first state alone, or where the state keeps the largest rate so far, of which the next value has a kink."""
    names = COLD if name in ("learned first accumulator", "learned schedule-free") else ALL
    return tuple(one for one in names if name not in SCHEDULED or one != "Greedy, one step")


@pytest.mark.variants(quick=["adam", "momo"], slow=["accumulation", "plateau"])
@pytest.mark.parametrize("name", QUICK)
def test_derivative_of_the_next_step(name):
    check_inner_solver(solver(SMOOTH[name]), linear=name in LINEAR, only=QUICK[name])


@pytest.mark.variants(
    quick=["injected rates", "injected stateful rate", "injected, accumulated", "learned rates"], slow=["injected rate"]
)
@pytest.mark.parametrize("name", QUICK_LEARNED)
def test_derivative_of_the_next_step_with_learned_settings(name):
    check_inner_solver(solver(LEARNED[name]), case=problems.tuned(), only=QUICK_LEARNED[name])


@pytest.mark.sweep
@pytest.mark.parametrize("name", SMOOTH)
def test_derivative_of_the_next_step_with_every_optimiser(name):
    check_inner_solver(solver(SMOOTH[name]), linear=name in LINEAR)


@pytest.mark.sweep
@pytest.mark.parametrize("name", LEARNED)
def test_derivative_of_the_next_step_with_every_learned_setting(name):
    check_inner_solver(solver(LEARNED[name]), case=problems.tuned(), only=estimators_for(name))


SHRINK = lambda w, hparams, scaling=1.0: w / (1 + scaling * jnp.exp(hparams["log_l2"]))
BALL = lambda w, hparams: w * jnp.minimum(1, 0.7 / jnp.linalg.norm(w))
JAXOPT = {
    "gradient descent": (jaxopt.GradientDescent, {"stepsize": 0.3}),
    "without acceleration": (jaxopt.GradientDescent, {"acceleration": False}),
    "LBFGS": (jaxopt.LBFGS, {"linesearch": "backtracking", "history_size": 3}),
    "LBFGS, fixed step": (jaxopt.LBFGS, {"stepsize": 0.2}),
    "BFGS": (jaxopt.BFGS, {"linesearch": "backtracking"}),
    "nonlinear CG": (jaxopt.NonlinearCG, {"linesearch": "backtracking"}),
    "Polyak": (jaxopt.PolyakSGD, {"max_stepsize": 0.3}),
    "Armijo": (jaxopt.ArmijoSGD, {}),
    "proximal": (jaxopt.ProximalGradient, {"prox": SHRINK, "stepsize": 0.3}),
    "projected": (jaxopt.ProjectedGradient, {"projection": BALL, "stepsize": 0.3}),
    "mirror descent": (jaxopt.MirrorDescent, {"projection_grad": lambda w, g, step, h: w - step * g, "stepsize": 0.2}),
    "optax": (jaxopt.OptaxSolver, {"opt": optax.sgd(0.2)}),
}


def jaxopt_solver(name):
    solver_class, options = JAXOPT[name]
    return lambda steps: hg.JaxoptSolver(solver_class, maxiter=steps, **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["LBFGS, fixed step"])
def test_derivative_of_the_next_step_with_line_searches(name):
    check_inner_solver(jaxopt_solver(name), num_steps=2)


@pytest.mark.sweep
@pytest.mark.parametrize("name", JAXOPT)
def test_derivative_of_the_next_step_with_every_jaxopt_solver(name):
    with loosened(10):  # a line search amplifies the error of differences
        check_inner_solver(jaxopt_solver(name), num_steps=2)


def test_a_derivative_that_optax_itself_gets_wrong_is_flagged():
    """RAdam takes the root of a negative number in the branch that it does not use, whose derivative is NaN."""
    case, estimator = problems.ridge(), hg.Reverse(hg.OptaxSolver(optax.radam(0.05), 4))
    state = estimator.init(case.problem, case.params, case.hparams)
    estimate, _ = estimator.step(case.problem, case.hparams, state, laws.KEY)
    assert jnp.isfinite(estimate.value) and hg.Status(int(estimate.stats.status)) & hg.Status.NONFINITE


REFUSED = {
    "line search": (optax.lbfgs(), "cannot differentiate"),
    "backtracking": (optax.chain(optax.sgd(0.1), optax.scale_by_backtracking_linesearch(5)), "cannot differentiate"),
    "lookahead": (optax.lookahead(optax.sgd(0.1), 2, 0.5), "failed on these parameters"),
}


@pytest.mark.variants(quick=["backtracking", "lookahead"], slow=["line search"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_differentiated_is_refused_by_name(name):
    optimiser, message = REFUSED[name]
    case, estimator = problems.ridge(), hg.Reverse(hg.OptaxSolver(optimiser, 2))
    with pytest.raises(ValueError, match=message):
        estimator.step(case.problem, case.hparams, estimator.init(case.problem, case.params, case.hparams), laws.KEY)


def test_line_searches_of_optax_train_under_implicit_estimators():
    case = problems.ridge()
    laws.closed_form(hg.Implicit(hg.OptaxSolver(optax.lbfgs(), 40), hg.CG(10, rtol=1e-14)), case)


@pytest.mark.parametrize("name", ["polyak", "plateau", "momo", "sophia"])
def test_optimisers_that_ask_for_the_loss_get_it(name):
    asking = (SMOOTH | {"sophia": optax.contrib.sophia(0.1, update_interval=2)})[name]
    case, inner = problems.ridge(), hg.OptaxSolver(asking, 3)
    optimiser, w = optax.with_extra_args_support(asking), case.params
    state = optimiser.init(w)
    for _ in range(3):
        loss = lambda w: case.problem.inner_loss(w, case.hparams, case.problem.train, laws.KEY)
        value, gradient = jax.value_and_grad(loss)(w)
        more = {"obj_fn": loss} if name == "sophia" else {}
        updates, state = optimiser.update(gradient, state, w, value=value, **more)
        w = optax.apply_updates(w, updates)
    found = hg.evaluate(inner, case.problem, case.params, case.hparams, laws.KEY).params
    assert jnp.allclose(found, w, rtol=1e-12)


def test_accumulation_is_taken_as_it_is():
    case = problems.ridge()
    plain, wrapped = (
        hg.evaluate(hg.OptaxSolver(one, 4), case.problem, case.params, case.hparams, laws.KEY).value
        for one in (
            optax.MultiSteps(optax.sgd(0.1), 2),
            optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation(),
        )
    )
    assert plain == wrapped


def test_weights_drift_apart_where_a_warm_start_cannot_follow():
    """A rate that halves itself, next to the velocity: nothing says what it should be at other hyperparameters."""

    def drifting(hparams):
        def update(gradient, state, params=None):
            return -state["rate"] * gradient, {"rate": state["rate"] / 2, "last": gradient}

        rate = jnp.exp(hparams["log_rate"])
        return optax.GradientTransformation(lambda params: {"rate": rate, "last": params}, update)

    case, inner = problems.tuned(), hg.OptaxSolver(drifting, 3)
    laws.finite_differences(hg.Reverse(inner), case)
    for make in (hg.Reverse, hg.Forward, hg.DrMAD):
        with pytest.raises(ValueError, match=r"state\['rate'\] starts from a hyperparameter and then changes"):
            make(inner, warm_start=True).init(case.problem, case.params, case.hparams)


def test_a_setting_of_the_first_state_alone_is_refused_for_warm_starts():
    case, inner = problems.tuned(), hg.OptaxSolver(LEARNED["learned first accumulator"], 3)
    for make in (hg.Reverse, hg.Forward, lambda inner, warm_start: hg.ES(inner, 2, warm_start=warm_start)):
        make(inner, warm_start=False).init(case.problem, case.params, case.hparams)
        with pytest.raises(ValueError, match=r"hparams\['log_rate'\] enters training through the first state"):
            make(inner, warm_start=True).init(case.problem, case.params, case.hparams)


@pytest.mark.slow
def test_a_schedule_of_hyperparameters_counts_one_training():
    """Every entry still reaches its step from the second training on; with one step there is nothing to count."""
    case = problems.tuned()
    for make in (hg.MomentumSGD(lambda h, t: jnp.exp(h["log_rates"][t]), 0.9), LEARNED["learned rates"]):
        estimator = hg.Reverse(hg.OptaxSolver(make, 6), warm_start=True)
        state = estimator.init(case.problem, case.params, case.hparams)
        for _ in range(2):
            estimate, state = estimator.step(case.problem, case.hparams, state, laws.KEY)
            assert jnp.all(jnp.abs(estimate.hypergradient["log_rates"] - 0.02 * case.hparams["log_rates"]) > 1e-9)
        with pytest.raises(ValueError, match="counts the steps of one training"):
            hg.Greedy(hg.OptaxSolver(make, 1)).init(case.problem, case.params, case.hparams)
    counter = lambda state: int(state.inner.solver.internal_state[1].count)
    fixed = hg.Reverse(hg.OptaxSolver(optax.sgd(optax.cosine_decay_schedule(0.1, 12)), 6), warm_start=True)
    state = fixed.init(case.problem, case.params, case.hparams)
    for k in range(2):
        _, state = fixed.step(case.problem, case.hparams, state, laws.KEY)
        assert counter(state) == 6 * (k + 1)  # a schedule without hyperparameters goes on


BAD_CLASSES = (
    jaxopt.LBFGSB,
    jaxopt.GaussNewton,
    jaxopt.LevenbergMarquardt,
    jaxopt.FixedPointIteration,
    jaxopt.AndersonAcceleration,
    jaxopt.Bisection,
    jaxopt.ScipyMinimize,
)


@pytest.mark.parametrize("solver_class", BAD_CLASSES)
def test_classes_that_minimise_no_plain_loss_are_refused_by_name(solver_class):
    with pytest.raises(TypeError, match=solver_class.__name__):
        hg.JaxoptSolver(solver_class, maxiter=5)


@pytest.mark.parametrize(
    "option",
    [
        {"has_aux": True},
        {"value_and_grad": True},
        {"jit": False},
        {"unroll": True},
        {"implicit_diff": False},
        {"stop_if_linesearch_fails": True},
    ],
)
def test_options_without_effect_are_refused_by_name(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        hg.JaxoptSolver(jaxopt.LBFGS, maxiter=5, **option)


@pytest.mark.slow
def test_the_option_tol_stops_a_solve_and_is_refused_where_steps_are_differentiated():
    case = problems.ridge()
    strict, loose = (hg.JaxoptSolver(jaxopt.LBFGS, maxiter=100, tol=tol) for tol in (1e-9, 1e-3))
    for inner, other in ((strict, hg.JaxoptSolver(jaxopt.LBFGS, maxiter=100)), (loose, strict)):
        state = inner.init(case.problem, case.params, case.hparams)
        _, stats = inner.solve(case.problem, case.hparams, state, laws.KEY)
        _, expected = other.solve(case.problem, case.hparams, state, laws.KEY, inner.tol)
        assert stats.iterations == expected.iterations < 50
    for make in (hg.Reverse, hg.DrMAD, hg.Greedy, hg.Forward, hg.OneStep):
        with pytest.raises(ValueError, match="option tol=1e-09 would have no effect"):
            make(strict)


def test_extra_arguments_reach_only_those_who_take_them():
    """SAM takes no keyword it does not know."""
    case = problems.ridge()
    inner = hg.OptaxSolver(contrib.sam(optax.sgd(0.1), optax.sgd(0.05), sync_period=2), 4)
    assert jnp.isfinite(hg.evaluate(inner, case.problem, case.params, case.hparams, laws.KEY).value)


def test_sharpness_aware_steps_take_the_gradient_uphill():
    sam = contrib.sam(optax.sgd(0.1), optax.chain(contrib.normalize(), optax.sgd(0.05)), opaque_mode=True)
    check_inner_solver(solver(sam), only=("Reverse",))
    case = problems.ridge()
    inner_loss = lambda w: case.problem.inner_loss(w, case.hparams, case.problem.train, laws.KEY)
    slope = jax.grad(inner_loss)(case.params)
    uphill = case.params + 0.05 * slope / optax.tree.norm(slope)
    found = hg.evaluate(solver(sam)(1), case.problem, case.params, case.hparams, laws.KEY).params
    assert_close(found, case.params - 0.1 * jax.grad(inner_loss)(uphill))


def test_what_makes_no_optimiser_is_named():
    case = problems.ridge()
    branching = lambda h: optax.sgd(optax.warmup_cosine_decay_schedule(0.0, jnp.exp(h["log_l2"][0]), 1, 3))
    for optimiser, words in ((lambda h: None, "must return an optax optimiser"), (branching, "jnp.where")):
        with pytest.raises(ValueError, match=f"^optimiser .* failed on these parameters: (?s:.*){words}"):
            hg.Reverse(hg.OptaxSolver(optimiser, 3)).init(case.problem, case.params, case.hparams)
