"""Linear solvers of stochastic training on noisy quadratics, H_j = H + noise, where every term has a closed form."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hypergrad as hg
from hypergrad.testing import assert_close, laws
from hypergrad.testing.problems import positive, ridge

STEPS = 6
SIGNS = np.array(list(itertools.product([-1.0, 1.0], repeat=STEPS)))  # all sequences of draws, equally likely
CURVATURE, SPREAD = np.array([0.5, 1.0, 2.0]), np.array([0.3, 0.8, 0.5])
RIGHT, ALPHA = np.array([1.0, -2.0, 0.5]), 0.3


class TwoPoint(eqx.Module):
    """v -> (h + s ξ_j) v with ξ_j = ±1 given, and ξ = 0 for the draw that is fixed."""

    signs: jax.Array

    def __call__(self, v, *draw):
        sign = self.signs[draw[0]] if draw else 0.0
        return (CURVATURE + SPREAD * sign) * v


def solve_all(solver, init=None):
    """Solutions for all sequences of draws."""
    one = lambda signs: solver.solve(TwoPoint(signs), jnp.asarray(RIGHT), init)
    return jax.jit(jax.vmap(one))(jnp.asarray(SIGNS))


def test_fresh_batches_have_mean_and_variance_of_the_series():
    """stocBiO: E v = α Σ m^q b, E v² = α² b² Σ_{p,q} M^min(p,q) m^|p-q|, m = 1 - αh, M = m² + α²s²."""
    found = solve_all(hg.linear.SGD(STEPS, step_size=ALPHA))
    m = 1 - ALPHA * CURVATURE
    square, powers = m**2 + (ALPHA * SPREAD) ** 2, range(STEPS + 1)
    mean = ALPHA * RIGHT * sum(m**q for q in powers)
    second = (ALPHA * RIGHT) ** 2 * sum(square ** min(p, q) * m ** abs(p - q) for p in powers for q in powers)
    assert_close(np.mean(found.value, 0), mean)
    assert_close(np.var(found.value, 0), second - mean**2)
    assert np.all(found.steps == STEPS + 1) and np.all(found.draws == STEPS)


def test_a_warm_start_contracts_to_the_solution_at_the_rate_of_descent():
    """AmIGO: E v - H⁻¹b shrinks by 1 - αh per step; the solution is the fixed point of the mean."""
    start = jnp.array([4.0, 3.0, -1.0])
    found, solution = solve_all(hg.linear.SGD(STEPS, step_size=ALPHA), start), RIGHT / CURVATURE
    assert_close(np.mean(found.value, 0) - solution, (1 - ALPHA * CURVATURE) ** STEPS * (start - solution))
    at_rest = solve_all(hg.linear.SGD(STEPS, step_size=ALPHA), jnp.asarray(solution))
    assert_close(np.mean(at_rest.value, 0), solution)


def test_a_start_that_is_not_finite_is_replaced():
    cold, warm = (solve_all(hg.linear.SGD(2, step_size=ALPHA), init) for init in (None, jnp.full(3, jnp.nan)))
    assert_close(warm.value, cold.value)


def test_the_step_size_is_found_with_draws_and_the_damping_added():
    found = solve_all(hg.linear.SGD(2, power_steps=4, damping=0.5))
    signs, b = SIGNS[0], RIGHT / np.linalg.norm(RIGHT)
    for j in range(4):
        b = (CURVATURE + 0.5 + SPREAD * signs[j]) * b
        size, b = np.linalg.norm(b), b / np.linalg.norm(b)
    v = RIGHT / size
    for j in (4, 5):
        v = v - ((CURVATURE + 0.5 + SPREAD * signs[j]) * v - RIGHT) / size
    assert_close(found.value[0], v)
    assert np.all(found.draws == 6) and np.all(found.steps == 7)


def drawn(train):
    """min ½ Σ a w² - hᵀw with a = h - s or h + s as the key says, F = gᵀw: the hypergradient is v."""

    def inner(w, h, data, key):
        spread = data * jnp.where(jax.random.bernoulli(key), 1.0, -1.0)
        return (CURVATURE + spread) @ w**2 / 2 - h @ w

    return hg.BilevelProblem(inner, lambda w, h, data, key: data @ w, train, jnp.asarray(RIGHT))


def over_keys(solver):
    """Estimates for many keys."""
    problem, estimator = drawn(jnp.asarray(SPREAD)), hg.Implicit(hg.OptaxSolver(optax.sgd(1e-3), 1), solver)
    state = estimator.init(problem, jnp.ones(3), jnp.zeros(3))
    step = lambda key: estimator.step(problem, jnp.zeros(3), state, key)[0]
    return jax.jit(jax.vmap(step))(jax.random.split(laws.KEY, 1000))


def near(samples, mean):
    """True where the mean of samples is that expected, to five standard errors."""
    samples = np.asarray(samples)
    return np.all(np.abs(samples.mean(0) - mean) < 5 * samples.std(0) / np.sqrt(len(samples)) + 1e-9)


@pytest.mark.slow
def test_averaged_solutions_have_a_bias_and_the_series_with_fresh_batches_has_none():
    """E H_b⁻¹ = h/(h² - s²) is not (E H_b)⁻¹ = 1/h."""
    one_draw = over_keys(hg.CG(5, rtol=1e-14)).hypergradient
    solution, m = RIGHT / CURVATURE, 1 - ALPHA * CURVATURE
    assert near(one_draw, RIGHT * CURVATURE / (CURVATURE**2 - SPREAD**2)) and not near(one_draw, solution)
    fresh = over_keys(hg.linear.SGD(8, step_size=ALPHA))
    assert near(fresh.hypergradient, solution * (1 - m**9)) and np.std(fresh.hypergradient) > 0.01
    assert int(fresh.stats.counts.hvps[0]) == 10 and int(fresh.stats.counts.inner_gradients[0]) == 1 + 8 + 1


def test_hoag_goes_on_from_the_last_solution():
    problem, start = drawn(jnp.zeros(3)), jnp.ones(3)  # without noise
    estimator = hg.HOAG(hg.OptaxSolver(optax.sgd(0.1), 1), hg.linear.SGD(2, step_size=ALPHA))
    state = estimator.init(problem, start, jnp.zeros(3))
    for steps in (2, 4, 6):
        estimate, state = estimator.step(problem, jnp.zeros(3), state, laws.KEY)
        expected = RIGHT / CURVATURE * (1 - (1 - ALPHA * CURVATURE) ** steps)
        assert_close(estimate.hypergradient, expected)


def test_identity_is_the_scaled_outer_gradient_and_measures_its_residual():
    matvec = lambda v: jnp.asarray(CURVATURE) * v
    found = hg.linear.Identity(scale=0.5).solve(matvec, jnp.asarray(RIGHT))
    assert_close(found.value, 0.5 * RIGHT)
    assert_close(found.residual, np.linalg.norm(RIGHT * (1 - 0.5 * CURVATURE)) / np.linalg.norm(RIGHT))
    assert not found.negative_curvature and found.steps == 1
    assert hg.linear.Identity().solve(lambda v: -matvec(v), jnp.asarray(RIGHT)).negative_curvature


def noisy_targets(solver, **options):
    """Implicit after training by Adam on L_b = ½ Σ h_i (w_i - ξ_ib)² - λᵀw, all ξ of one spread."""
    inner = lambda w, h, data, key: (w - jax.random.normal(key, (3,))) ** 2 @ CURVATURE / 2 - h @ w
    outer = lambda w, h, data, key: jnp.asarray(RIGHT) @ w
    problem = hg.BilevelProblem(inner, outer, jnp.zeros(1), jnp.zeros(1))
    estimator = hg.Implicit(hg.OptaxSolver(optax.adam(1e-3), 4000), solver, warm_start=True, **options)
    state = estimator.init(problem, jnp.zeros(3), jnp.zeros(3))
    return estimator.step(problem, jnp.zeros(3), state, laws.KEY)


@pytest.mark.slow
def test_the_diagonal_of_adam_is_a_diagonal_hessian_but_for_a_factor():
    """SAMA is then right but for its length, and as a preconditioner it leaves one step to CG."""
    cosine = lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    solution, diagonal = RIGHT / CURVATURE, hg.curvature.AdamDiagonal(learning_rate=0.1)
    sama, state = noisy_targets(hg.linear.Identity(), preconditioner=diagonal)
    (adam,) = [part for part in state.solver.internal_state if isinstance(part, optax.ScaleByAdamState)]
    root = np.sqrt(adam.nu / (1 - 0.999**4000))
    assert_close(sama.hypergradient, RIGHT * 0.1 / (root + 1e-8))
    assert cosine(sama.hypergradient, solution) > 0.99 > 0.95 > cosine(RIGHT, solution)
    one_step, _ = noisy_targets(hg.CG(1), preconditioner=diagonal)
    assert cosine(one_step.hypergradient, sama.hypergradient) > 1 - 1e-12
    assert np.linalg.norm(one_step.hypergradient - solution) < 0.1 * np.linalg.norm(solution)


def test_the_diagonal_of_adam_refuses_other_optimisers():
    case = ridge()
    estimator = hg.Implicit(hg.OptaxSolver(optax.sgd(0.1), 2), preconditioner=hg.curvature.AdamDiagonal())
    state = estimator.init(case.problem, case.params, case.hparams)
    with pytest.raises(TypeError, match="one Adam"):
        estimator.step(case.problem, case.hparams, state, laws.KEY)


def draws_of(fixed, others):
    """An operator with one matrix for the solve and another for all draws."""
    return lambda v, *draw: (jnp.asarray(others) if draw else jnp.asarray(fixed)) @ v


@pytest.mark.parametrize("seed", [0, 1])
def test_the_damping_is_the_first_at_which_another_batch_confirms_the_gain(seed):
    rng = np.random.default_rng(seed)
    true = positive(rng, 8, 0.2, 3.0)
    noise = rng.normal(size=(8, 8))
    fixed, b = true + 0.4 * (noise + noise.T), rng.normal(size=8)
    assert np.linalg.eigvalsh(fixed)[0] < 0
    found = jax.jit(lambda b: hg.linear.LevenbergMarquardt(30, rtol=1e-13).solve(draws_of(fixed, true), b))(b)
    scale = np.linalg.norm(fixed @ b) / np.linalg.norm(b)
    for damping in (0, *(scale * 0.01 * 4.0**k for k in range(8))):
        system = fixed + damping * np.eye(8)
        v = np.linalg.solve(system, b)
        if np.linalg.eigvalsh(system)[0] > 0 and b @ v - v @ true @ v / 2 >= 0.25 * (b @ v - v @ system @ v / 2):
            break
    assert damping > 0
    np.testing.assert_allclose(found.value, v, rtol=1e-8)
    assert found.residual < 1e-8 and not found.negative_curvature


def test_without_noise_nothing_is_damped_and_every_product_is_counted():
    matrix, b, calls = positive(np.random.default_rng(1), 5), jnp.arange(1.0, 6.0), []

    def counted(v, *draw):
        jax.debug.callback(lambda: calls.append(1))
        return jnp.asarray(matrix) @ v

    for solver in (hg.linear.LevenbergMarquardt(9, rtol=1e-12), hg.linear.SGD(5), hg.linear.Identity()):
        calls.clear()
        found = jax.jit(lambda b, solver=solver: solver.solve(counted, b))(b)
        jax.effects_barrier()
        assert len(calls) == found.steps
        if solver.stochastic and solver.max_steps == 9:
            assert_close(found.value, np.linalg.solve(matrix, b), "solved")
            assert found.draws == 1


def test_solvers_with_draws_refuse_operators_without_them_by_name():
    with pytest.raises(ValueError, match=r"matvec\(b, 0\) fails"):
        hg.linear.SGD(3).solve(lambda v: v, jnp.ones(2))


def test_a_right_hand_side_of_zero_has_solution_zero():
    operator = lambda v, *draw: 2 * v
    for solver in (hg.linear.SGD(3), hg.linear.Identity(), hg.linear.LevenbergMarquardt(3)):
        found = solver.solve(operator, jnp.zeros(2))
        assert jnp.all(found.value == 0) and found.residual == 0 and not found.negative_curvature
