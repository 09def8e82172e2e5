"""Linear solvers: right where they can be, honest where they cannot."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given

import hypergrad as hg
from hypergrad.linear import base
from hypergrad.testing.problems import positive
from hypergrad.testing.strategies import seeds


class Times(eqx.Module):
    """v -> matrix v; data, so that all matrices of one size share their compiled code."""

    matrix: jax.Array

    def __call__(self, v):
        return {"v": self.matrix @ v["v"]}


def system(matrix, seed=0):
    b = np.random.default_rng(seed).normal(size=len(matrix))
    return Times(jnp.asarray(matrix)), {"v": jnp.asarray(b)}, b


@eqx.filter_jit
def solve(solver, matvec, b, init=None):
    return solver.solve(matvec, b, init)


def test_all_products_of_cg_are_one_program():
    """It is compiled once, that of the residual too."""
    program = jax.make_jaxpr(lambda b: hg.CG(2).solve(lambda v: jnp.sin(1.0) * v, b))(jnp.ones(2))
    assert str(program).count(" sin ") == 1


@pytest.mark.parametrize("damping", [0.0, 0.3])
@pytest.mark.parametrize("warm", [False, True])
@given(seed=seeds)
def test_cg_is_the_dense_solution(damping, warm, seed):
    matrix = positive(np.random.default_rng(seed), 6)
    matvec, b, right = system(matrix, seed)
    init = {"v": jnp.full(6, 0.1)} if warm else None
    found = solve(hg.CG(7, damping=damping, rtol=1e-14), matvec, b, init)
    np.testing.assert_allclose(found.value["v"], np.linalg.solve(matrix + damping * np.eye(6), right), rtol=1e-8)
    assert found.residual < 1e-10 and not found.negative_curvature


SOLVERS = {
    "MINRES": lambda damping: hg.MINRES(9, damping=damping, rtol=1e-13),
    "GMRES": lambda damping: hg.GMRES(6, damping=damping, rtol=1e-14),
    "NormalCG": lambda damping: hg.NormalCG(20, damping=damping, rtol=1e-14),
    "Dense": lambda damping: hg.Dense(damping=damping),
}


@pytest.mark.variants(quick=["0.3-0.2-*", "-1.0-*"], slow=["0.3-0.0-GMRES", "0.3-0.0-MINRES"])
@pytest.mark.parametrize("make", SOLVERS.values(), ids=SOLVERS)
@pytest.mark.parametrize(("low", "damping"), [(0.3, 0.0), (0.3, 0.2), (-1.0, 0.0)])
@given(seed=seeds)
def test_the_others_are_the_dense_solution(make, low, damping, seed):
    """`low=-1` is indefinite."""
    matrix = positive(np.random.default_rng(seed), 6, low, 2.0)
    matvec, b, right = system(matrix, seed)
    for init in (None, {"v": jnp.full(6, 0.1)}):
        found = solve(make(damping), matvec, b, init)
        np.testing.assert_allclose(found.value["v"], np.linalg.solve(matrix + damping * np.eye(6), right), rtol=1e-7)
        assert found.residual < 1e-10


@pytest.mark.parametrize("solver", [hg.MINRES(20), hg.Dense(), hg.Nystrom(4, damping=1e-6), hg.CG(20)])
def test_negative_curvature_is_seen(solver):
    for matrix, negative in ((np.diag([1.0, -0.5, 2.0, 0.3]), True), (np.diag([1.0, 0.5, 2.0, 0.3]), False)):
        assert bool(solve(solver, *system(matrix)[:2]).negative_curvature) is negative


@pytest.mark.slow
@given(seed=seeds)
def test_minres_never_makes_the_residual_larger(seed):
    matvec, b, right = system(positive(np.random.default_rng(seed), 12, -1.0, 3.0), seed)
    residuals = [float(solve(hg.MINRES(k, rtol=0.0), matvec, b).residual) for k in (1, 2, 4, 8, 12)]
    assert all(after <= before * (1 + 1e-9) for before, after in itertools.pairwise([1.0, *residuals]))
    basis = np.linalg.qr(
        np.column_stack([np.linalg.matrix_power(np.array(matvec({"v": np.eye(12)})["v"]), k) @ right for k in range(4)])
    )[0]
    images = matvec({"v": jnp.asarray(basis)})["v"]
    least = np.linalg.lstsq(images, right)[1][0] ** 0.5 / np.linalg.norm(right)
    np.testing.assert_allclose(residuals[2], least, rtol=1e-6)


def test_gmres_solves_what_is_not_symmetric():
    skewed = np.eye(3) + np.triu(np.ones((3, 3)), 1) * 3
    matvec, b, right = system(skewed)
    np.testing.assert_allclose(solve(hg.GMRES(3, rtol=1e-14), matvec, b).value["v"], np.linalg.solve(skewed, right))


@pytest.mark.parametrize("rank", [2, 6, 20])
@given(seed=seeds)
def test_nystrom_is_its_formula_and_exact_at_full_rank(rank, seed):
    matrix = positive(np.random.default_rng(seed), 6)
    matvec, b, right = system(matrix, seed)
    found = solve(hg.Nystrom(rank, damping=0.1, seed=3), matvec, b)
    chosen = np.asarray(jax.random.permutation(jax.random.key(3), 6)[:rank])
    columns = matrix[:, chosen]
    low_rank = columns @ np.linalg.inv(matrix[np.ix_(chosen, chosen)]) @ columns.T
    np.testing.assert_allclose(found.value["v"], np.linalg.solve(low_rank + 0.1 * np.eye(6), right), rtol=1e-8)
    if rank >= 6:
        np.testing.assert_allclose(low_rank, matrix, atol=1e-10)
        assert found.residual < 1e-9


def test_nystrom_leaves_out_what_is_singular():
    matvec, b, right = system(np.diag([2.0, 0.0, 1.0, 0.0]))
    found = solve(hg.Nystrom(4, damping=0.5), matvec, b)
    np.testing.assert_allclose(found.value["v"], right / np.array([2.5, 0.5, 1.5, 0.5]), rtol=1e-10)


@pytest.mark.parametrize("rank", [2, 6])
@given(seed=seeds)
def test_nystrom_without_damping_takes_a_share_of_the_norm_of_its_columns(rank, seed):
    matrix = positive(np.random.default_rng(seed), 6)
    matvec, b, _ = system(matrix, seed)
    chosen = np.asarray(jax.random.permutation(jax.random.key(0), 6)[:rank])
    share = jnp.asarray(0.05 * np.linalg.norm(matrix[:, chosen], 2))  # an array: compiled once
    found, expected = (
        solve(hg.Nystrom(rank, **damping), matvec, b) for damping in ({"relative_damping": 0.05}, {"damping": share})
    )
    np.testing.assert_allclose(found.value["v"], expected.value["v"], rtol=1e-9)


@given(seed=seeds)
def test_neumann_is_its_series(seed):
    matrix, alpha = positive(np.random.default_rng(seed), 5), 0.4
    matvec, b, right = system(matrix, seed)
    expected = alpha * sum(np.linalg.matrix_power(np.eye(5) - alpha * matrix, k) @ right for k in range(6))
    found = solve(hg.Neumann(6, step_size=alpha), matvec, b)
    np.testing.assert_allclose(found.value["v"], expected, rtol=1e-10)
    residual = np.linalg.norm(right - matrix @ expected) / np.linalg.norm(right)
    np.testing.assert_allclose(found.residual, residual, rtol=1e-8)


@given(seed=seeds)
def test_neumann_finds_a_step_size_that_converges(seed):
    matrix = positive(np.random.default_rng(seed), 5, 0.5, 200.0)
    matvec, b, right = system(matrix, seed)
    found = solve(hg.Neumann(20_000, rtol=1e-10), matvec, b)
    np.testing.assert_allclose(found.value["v"], np.linalg.solve(matrix, right), rtol=1e-6)


@pytest.mark.parametrize(
    "solver",
    [
        hg.CG(5, rtol=0.0),
        hg.Neumann(5, step_size=1e-3),
        hg.Neumann(5),
        hg.MINRES(5, rtol=0.0),
        hg.NormalCG(2, rtol=0.0),
    ],
)
def test_the_budget_is_kept_and_the_residual_is_true(solver):
    matrix = positive(np.random.default_rng(1), 30, 1e-3, 1e3)
    matvec, b, right = system(matrix)
    calls = []

    def counted(v):
        jax.debug.callback(lambda: calls.append(1))
        return matvec(v)

    found = jax.jit(lambda b: solver.solve(counted, b))(b)
    jax.effects_barrier()
    assert len(calls) == found.steps <= 5 + 1 + 5
    residual = np.linalg.norm(right - matrix @ found.value["v"]) / np.linalg.norm(right)
    np.testing.assert_allclose(found.residual, residual, rtol=1e-8)
    assert found.residual > 1e-2


@pytest.mark.row(21)
@pytest.mark.parametrize("solver", [hg.CG(20), hg.Neumann(20)])
def test_indefinite_matrices_are_flagged_with_a_finite_answer(solver):
    matvec, b, _ = system(np.diag([1.0, -0.5, 2.0, 0.3]))
    found = solve(solver, matvec, b)
    assert found.negative_curvature and jnp.all(jnp.isfinite(found.value["v"]))


@pytest.mark.row(21)
def test_singular_and_not_symmetric_matrices_show_in_the_residual():
    found = solve(hg.CG(20), *system(np.diag([1.0, 0.0, 2.0]))[:2])
    assert found.residual > 1e-2 and jnp.all(jnp.isfinite(found.value["v"]))
    skewed = np.eye(3) + np.triu(np.ones((3, 3)), 1) * 3
    found = solve(hg.CG(3), *system(skewed)[:2])
    assert found.residual > 1e-2 or found.negative_curvature


@pytest.mark.slow
def test_a_right_hand_side_of_zero_has_solution_zero():
    matvec, b, _ = system(np.eye(3))
    for solver in (hg.CG(5), hg.Neumann(5), hg.MINRES(5), hg.GMRES(3), hg.NormalCG(5), hg.Dense(), hg.Nystrom(2)):
        found = solve(solver, matvec, optax.tree.zeros_like(b))
        assert jnp.all(found.value["v"] == 0) and found.residual == 0


@pytest.mark.parametrize("solver", [hg.CG(20), hg.Neumann(20), hg.GMRES(4), hg.Dense()])
def test_a_right_hand_side_that_is_not_finite_has_no_solution(solver):
    """The start of an iteration that ends there at once is a wrong answer."""
    matvec, b, _ = system(np.eye(4))
    for bad in (jnp.nan, jnp.inf):
        found = eqx.filter_jit(base.solve)(solver, matvec, {"v": b["v"].at[1].set(bad)}, None, 1e-6)
        assert np.all(np.isnan(found.value["v"]))


def test_a_warm_start_that_is_worse_than_none_is_dropped():
    matvec, b, _ = system(positive(np.random.default_rng(0), 4))
    cold, warm = (solve(hg.CG(2), matvec, b, init).value["v"] for init in (None, {"v": jnp.full(4, 1e6)}))
    np.testing.assert_array_equal(cold, warm)


SYMMETRIC = [hg.CG(40), hg.NormalCG(40), hg.MINRES(40), hg.Neumann(40)]


@pytest.mark.parametrize("solver", SYMMETRIC, ids=lambda solver: type(solver).__name__)
@given(seed=seeds)
def test_an_answer_to_a_singular_system_without_solution_is_no_worse_than_zero(solver, seed):
    """b has a share outside the range of H: every step of CG beyond the range lengthens the answer."""
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(6, 9))
    matvec, b, right = system(factor.T @ factor / 6, seed)
    found = solve(solver, matvec, b)
    assert found.residual <= 1 and np.linalg.norm(found.value["v"]) < 1e4 * np.linalg.norm(right)


@pytest.mark.parametrize("init", [10**30, "text", jnp.ones(3, int)])
def test_a_start_that_is_no_array_of_numbers_is_named(init):
    with pytest.raises(TypeError, match="init must be an array of floating numbers"):
        hg.CG().solve(lambda v: v, jnp.ones(3), init)


EVERY = [hg.CG(), hg.NormalCG(), hg.MINRES(), hg.GMRES(), hg.Neumann(), hg.Nystrom(2), hg.Dense(), hg.linear.SGD(50)]
EVERY += [hg.linear.LevenbergMarquardt(50), hg.linear.Identity(scale=0.5)]


@pytest.mark.variants(quick=["float16-*"], slow=["bfloat16-*"])
@pytest.mark.parametrize("solver", EVERY, ids=lambda solver: type(solver).__name__)
@pytest.mark.parametrize("kind", [jnp.bfloat16, jnp.float16])
def test_right_hand_sides_in_half_precision(solver, kind):
    found = solve(solver, lambda v, *_: 2 * v, jnp.ones(2, kind)).value
    assert found.dtype == kind and np.allclose(np.asarray(found, float), 0.5, atol=0.01)


@pytest.mark.parametrize("solver", [hg.CG(), hg.MINRES(), hg.GMRES(), hg.Dense(), hg.Nystrom(8, damping=0.1)])
def test_systems_may_be_complex(solver):
    parts = np.random.default_rng(0).normal(size=(2, 4, 5))
    columns = parts[0] + 1j * parts[1]
    matrix, right = columns @ columns.conj().T + np.eye(4), columns[:, 0]
    found = solve(solver, Times(jnp.asarray(matrix)), {"v": right})
    damped = matrix + solver.damping * np.eye(4)
    np.testing.assert_allclose(found.value["v"], np.linalg.solve(damped, right), rtol=1e-6)


@pytest.mark.row(23)
@pytest.mark.parametrize("kind", [">f8", np.longdouble])
@pytest.mark.parametrize("solver", EVERY, ids=lambda solver: type(solver).__name__)
def test_numbers_that_jax_does_not_know_are_named(solver, kind):
    for b, init, path in ((np.ones(2, kind), None, "b"), (np.ones(2), np.ones(2, kind), "init")):
        with pytest.raises(TypeError, match=f"^{path} has dtype"):
            solver.solve(lambda v, *_: v, b, init)
