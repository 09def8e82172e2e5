"""Statistics against plain NumPy, with inverses and loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

import ensembles as ens

LIMIT = 1e-10

# One program each: what runs operation by operation is compiled operation by operation.
chi2, mean_chi2, phi2, ensemble_chi2, negative_log_probability, bias_variance, coverage = (
    jax.jit(function, static_argnames="best_fraction" if function is ens.mean_chi2 else ())
    for function in (
        *(ens.chi2, ens.mean_chi2, ens.phi2, ens.ensemble_chi2),
        *(ens.negative_log_probability, ens.bias_variance, ens.coverage),
    )
)


@jax.jit
def covariance_and_factor(uncorrelated, additive, relative, central):
    C = ens.covariance(uncorrelated, additive, relative, central)
    return C, ens.cholesky(C)


def case(seed, replicas=7, points=9):
    """Predictions, data, covariance, its factor; correlated, of unequal sizes."""
    random = np.random.default_rng(seed)
    C, L = covariance_and_factor(
        random.uniform(0.1, 1, points),
        random.normal(size=(points, 2)),
        random.normal(size=(points, 2)) / 5,
        random.normal(size=points),
    )
    data = random.normal(size=points) + 3
    T = data + random.normal(size=(replicas, points)) * random.uniform(0.1, 2)
    return T, data, C, L


def by_hand(T, D, C):
    """chi2 of one prediction per point."""
    return (T - D) @ np.linalg.inv(C) @ (T - D) / len(D)


seeds = given(seed=st.integers(0, 2**16), replicas=st.sampled_from([2, 7]))


@seeds
def test_the_covariance_is_its_formula_entry_by_entry(seed, replicas):
    random = np.random.default_rng(seed)
    u, A, M, t = random.uniform(1, 2, 4), random.normal(size=(4, 3)), random.normal(size=(4, 2)), random.normal(size=4)
    expected = [
        [
            (i == j) * u[i] ** 2
            + sum(A[i, s] * A[j, s] for s in range(3))
            + sum(M[i, s] * M[j, s] * t[i] * t[j] for s in range(2))
            for j in range(4)
        ]
        for i in range(4)
    ]
    np.testing.assert_allclose(ens.covariance(u, A, M, t), expected, rtol=LIMIT)


def test_t0_removes_the_bias_towards_low_values():
    """Two measurements of one number with a common relative error (d'Agostini 1994): with the data as centre the best
    fit is below both, with t0 it is their mean."""
    data, u, relative = np.array([8.0, 8.5]), np.array([0.16, 0.17]), np.full((2, 1), 0.1)
    fits = {}
    for name, centre in (("data", data), ("t0", np.full(2, 8.2))):
        inverse = np.linalg.inv(np.asarray(ens.covariance(u, np.zeros((2, 0)), relative, centre)))
        fits[name] = inverse.sum(0) @ data / inverse.sum()
    assert fits["data"] < 8.0 < fits["t0"] < 8.5
    weights = u**-2.0
    np.testing.assert_allclose(fits["t0"], weights @ data / weights.sum(), rtol=1e-10)


@seeds
def test_chi2_is_its_formula(seed, replicas):
    T, D, C, L = case(seed, replicas)
    expected = [by_hand(t, D, C) for t in np.asarray(T)]
    np.testing.assert_allclose(chi2(T, D, L), expected, rtol=LIMIT)
    np.testing.assert_allclose(chi2(T[0], D, L), expected[0], rtol=LIMIT)
    np.testing.assert_allclose(chi2(T[None], D, L), [expected], rtol=LIMIT)
    np.testing.assert_allclose(mean_chi2(T, D, L), np.mean(expected), rtol=LIMIT)
    for best in (0.9, 0.5):
        number = int(np.ceil(round(best * replicas, 6)))
        found = mean_chi2(T, D, L, best_fraction=best)
        np.testing.assert_allclose(found, np.mean(np.sort(expected)[:number]), rtol=LIMIT)


@pytest.mark.parametrize(("fraction", "number"), [(0.9, 90), (0.55, 55), (0.07, 7), (0.001, 1), (1.0, 100)])
def test_the_best_fraction_is_rounded_up_without_rounding_errors(fraction, number):
    values = jnp.arange(100.0)[::-1]
    assert ens.mean_of_best(values, fraction) == np.mean(np.arange(number))


@seeds
def test_phi2_is_a_difference_of_chi2_and_a_trace(seed, replicas):
    T, D, C, L = case(seed, replicas)
    found = phi2(T, L)
    difference = np.mean([by_hand(t, D, C) for t in np.asarray(T)]) - by_hand(np.mean(T, 0), D, C)
    trace = np.trace(np.linalg.inv(C) @ np.cov(T, rowvar=False, ddof=0)) / len(D)
    np.testing.assert_allclose(found, difference, rtol=LIMIT * 100, atol=LIMIT)  # the difference cancels
    np.testing.assert_allclose(found, trace, rtol=LIMIT)


@pytest.mark.slow
@given(seed=st.integers(0, 2**16), replicas=st.sampled_from([1, 2, 5, 30]))
def test_the_spread_counts_as_an_error(seed, replicas):
    """Fewer replicas than points and more."""
    T, D, C, L = case(seed, replicas)
    spread = np.cov(T, rowvar=False, ddof=1) if replicas > 1 else 0
    whole, mean = np.asarray(C) + spread, np.mean(T, 0)
    chi2 = by_hand(mean, np.asarray(D), whole)
    np.testing.assert_allclose(ensemble_chi2(T, D, L), chi2, rtol=LIMIT)
    for scale in (None, np.asarray(D)):
        unit = whole if scale is None else whole / np.outer(scale, scale)
        expected = (len(D) * np.log(2 * np.pi) + np.linalg.slogdet(unit)[1] + len(D) * chi2) / (2 * len(D))
        found = negative_log_probability(T, D, L, scale=scale)
        np.testing.assert_allclose(found, expected, rtol=LIMIT, atol=LIMIT)


@pytest.mark.slow
@given(seed=st.integers(0, 2**16), replicas=st.sampled_from([2, 7]), count=st.sampled_from([1, 5, 9]))
def test_masked_points_count_for_nothing(seed, replicas, count):
    T, D, C, _ = case(seed, replicas)
    mask = np.random.default_rng(seed).permutation(9) < count
    masked = ens.cholesky(ens.mask_covariance(C, mask))
    part = (T[:, mask], D[mask], ens.cholesky(np.asarray(C)[np.ix_(mask, mask)]))
    poisoned = np.where(mask, T, 1e30)
    for statistic in (mean_chi2, ensemble_chi2, negative_log_probability):
        np.testing.assert_allclose(statistic(poisoned, D, masked, mask), statistic(*part), rtol=LIMIT)
    np.testing.assert_allclose(phi2(poisoned, masked, mask), phi2(part[0], part[2]), rtol=LIMIT)
    scaled = negative_log_probability(T, D, masked, mask, scale=D)
    np.testing.assert_allclose(scaled, negative_log_probability(*part, scale=D[mask]), rtol=LIMIT)
    covered = coverage(T, D, np.array([0.5, 0.9]), mask=mask)
    np.testing.assert_allclose(covered, coverage(part[0], part[1], np.array([0.5, 0.9])), rtol=LIMIT)


OF_MEMBERS = {
    "mean_chi2": lambda T, D, L, keep: ens.mean_chi2(T, D, L, keep=keep),
    "best": lambda T, D, L, keep: ens.mean_chi2(T, D, L, keep=keep, best_fraction=0.6),
    "phi2": lambda T, D, L, keep: ens.phi2(T, L, keep=keep),
    "ensemble_chi2": lambda T, D, L, keep: ens.ensemble_chi2(T, D, L, keep=keep),
    "log_probability": lambda T, D, L, keep: ens.negative_log_probability(T, D, L, keep=keep),
    "bias": lambda T, D, L, keep: ens.bias_variance(T, D, L, keep=keep).total,
    "coverage": lambda T, D, L, keep: ens.coverage(T, D, jnp.array([0.3, 0.7]), keep=keep),
    "calibration": lambda T, D, L, keep: ens.calibration_error(T, D, keep=keep),
}
of_members = pytest.mark.parametrize("statistic", OF_MEMBERS.values(), ids=OF_MEMBERS)


def some_of_eight(number):
    """Draws which replicas are whole: any so many, of few numbers, because each is a shape to compile for."""
    return st.permutations([True] * number + [False] * (8 - number))


@functools.cache
def slope_of(statistic):
    return jax.jit(jax.grad(lambda T, D, L, keep: jnp.sum(statistic(T, D, L, keep))))


@pytest.mark.variants(
    quick=["calibration", "phi2", "bias"], slow=["log_probability", "coverage", "best", "mean_chi2", "ensemble_chi2"]
)
@of_members
@given(seed=st.integers(0, 2**16), keep=st.sampled_from([2, 5, 7]).flatmap(some_of_eight))
def test_failed_replicas_count_for_nothing(statistic, seed, keep):
    T, D, _, L = case(seed, 8)
    keep = np.array(keep)
    broken = np.where(keep[:, None], T, np.nan)
    expected = jax.jit(statistic)(T[keep], D, L, None)
    np.testing.assert_allclose(statistic(broken, D, L, keep), expected, rtol=LIMIT)
    np.testing.assert_allclose(jax.jit(statistic)(broken, D, L, ens.is_finite(broken)), expected, rtol=LIMIT)
    through = slope_of(statistic)(broken, D, L, keep)
    assert np.all(np.isfinite(through)) and np.all(through[~keep] == 0)


@pytest.mark.row(8)
@of_members
@given(seed=st.integers(0, 2**16), order=st.permutations(range(6)))
def test_replica_order_is_irrelevant(statistic, seed, order):
    T, D, _, L = case(seed, 6)
    shuffled = T[np.array(order)]
    statistic = jax.jit(statistic)
    np.testing.assert_allclose(statistic(shuffled, D, L, None), statistic(T, D, L, None), rtol=LIMIT)


@of_members
@given(seed=st.integers(0, 2**16), order=st.permutations(range(9)))
def test_point_order_is_irrelevant(statistic, seed, order):
    T, D, C, L = case(seed, 6)
    order = np.array(order)
    other = ens.cholesky(np.asarray(C)[np.ix_(order, order)])
    statistic = jax.jit(statistic)
    np.testing.assert_allclose(statistic(T[:, order], D[order], other, None), statistic(T, D, L, None), rtol=LIMIT)


@pytest.mark.row(3)
@pytest.mark.variants(quick=["bias", "best", "phi2"], slow=["mean_chi2", "log_probability", "ensemble_chi2"])
@pytest.mark.parametrize("name", ["mean_chi2", "best", "phi2", "ensemble_chi2", "log_probability", "bias"])
def test_gradients_are_finite_differences(name):
    T, D, _, L = case(3)
    check_grads(jax.jit(lambda T: OF_MEMBERS[name](T, D, L, None)), (T,), order=2, modes=["fwd", "rev"], rtol=1e-5)


@seeds
def test_bias_and_variance_add_up(seed, replicas):
    T, D, _, L = case(seed, replicas)
    parts = bias_variance(T, D, L)
    np.testing.assert_allclose(parts.total, mean_chi2(T, D, L), rtol=LIMIT)
    squared = bias_variance(T, D)
    np.testing.assert_allclose(squared.bias, np.mean((np.mean(T, 0) - D) ** 2), rtol=LIMIT)
    np.testing.assert_allclose(squared.variance, np.mean(np.var(T, 0)), rtol=LIMIT)
    np.testing.assert_allclose(squared.total, np.mean((T - D) ** 2), rtol=LIMIT)


@pytest.mark.slow
def test_coverage_is_its_formula_and_right_for_calibrated_ensembles():
    random = np.random.default_rng(0)
    truth, errors = random.normal(size=4000), random.uniform(0.5, 1.5, 4000)
    centre = truth + 0.8 * random.normal(size=4000)
    T = centre + 0.8 * random.normal(size=(200, 4000))
    data = truth + errors * random.normal(size=4000)
    inside = np.abs(data - T.mean(0)) <= 1.6448536 * np.sqrt(T.var(0, ddof=1) + errors**2)
    np.testing.assert_allclose(ens.coverage(T, data, 0.9, errors), inside.mean(), rtol=LIMIT)
    np.testing.assert_allclose(ens.coverage(T, data, [0.5, 0.9], errors), [0.5, 0.9], atol=0.025)
    assert ens.calibration_error(T, data, errors) < 0.02
    assert ens.calibration_error(T, data) > 0.1  # the noise of the data forgotten
    np.testing.assert_allclose(ens.calibration_error(T, data, num_levels=1), abs(ens.coverage(T, data, 0.5) - 0.5))


@pytest.mark.slow
def test_the_bootstrap_error_of_a_mean_is_its_standard_error():
    T = jax.random.normal(jax.random.key(0), (400, 3)) * jnp.array([1.0, 2.0, 5.0])
    found = ens.bootstrap_error(jax.random.key(1), lambda T: jnp.mean(T, 0), T, num=2000)
    np.testing.assert_allclose(found, np.std(T, 0) / 20, rtol=0.06)
    again = ens.bootstrap_error(jax.random.key(1), lambda T: jnp.mean(T, 0), T, num=2000, chunk=333)
    np.testing.assert_allclose(again, found, rtol=LIMIT)


def test_whitened_residuals_of_the_right_covariance_have_unit_variance():
    _, D, _, L = case(1)
    replicas = ens.monte_carlo(jax.random.key(0), D, L, 20_000)
    white = ens.whiten(L, replicas - D)
    np.testing.assert_allclose(np.cov(white, rowvar=False), np.eye(9), atol=0.04)


@pytest.mark.row(25)
def test_one_replica_has_no_spread():
    T, D, _, L = case(1, replicas=1)
    assert ens.phi2(T, L) == 0
    np.testing.assert_allclose(ens.ensemble_chi2(T, D, L), ens.chi2(T[0], D, L), rtol=LIMIT)
    with pytest.raises(ValueError, match="predictions holds one replica"):
        ens.coverage(T, D, 0.5)
    with pytest.raises(ValueError, match="predictions holds one replica"):
        ens.bootstrap_error(jax.random.key(0), jnp.mean, T)


@pytest.mark.slow
def test_statistics_refuse_bad_input_by_name():
    T, D, C, L = case(1)
    refused = {
        "not symmetric": lambda: ens.cholesky(C.at[0, 1].add(1)),
        "not positive definite: its smallest": lambda: ens.cholesky(C - 2 * jnp.eye(9)),
        "NaN or infinite": lambda: ens.cholesky(C.at[0, 0].set(jnp.nan)),
        r"covariance must have shape \(9, 9\), got \(9, 8\)": lambda: ens.cholesky(C[:, :8]),
        r"data must have shape \(9\)": lambda: ens.chi2(T, D[:8], L),
        r"factor must have shape \(9, 9\)": lambda: ens.chi2(T, D, L[:8]),
        r"predictions must have shape \(any, any\)": lambda: ens.phi2(T[0], L),
        r"mask must have shape": lambda: ens.chi2(T, D, L, jnp.ones(3)),
        "mask leaves no point": lambda: ens.chi2(T, D, L, jnp.zeros(9)),
        "factor is not that of mask_covariance": lambda: ens.chi2(T, D, L, jnp.arange(9) < 5),
        r"keep must have shape": lambda: ens.phi2(T, L, keep=jnp.ones(3)),
        "keep leaves no replica": lambda: ens.phi2(T, L, keep=jnp.zeros(7)),
        "best_fraction must be a finite number above 0": lambda: ens.mean_chi2(T, D, L, best_fraction=0.0),
        "levels": lambda: ens.coverage(T, D, 1.5),
        "num must be": lambda: ens.bootstrap_error(jax.random.key(0), jnp.mean, T, num=1),
        "uncorrelated": lambda: ens.covariance(C, C, C, D),
        "additive": lambda: ens.covariance(D, C[:3], C, D),
        "relative": lambda: ens.covariance(D, C, C[:3], D),
        "central": lambda: ens.covariance(D, C, C, D[:3]),
        "scale": lambda: ens.negative_log_probability(T, D, L, scale=D[:3]),
        "last axis of points": lambda: ens.chi2(jnp.float64(1), D, L),
    }
    for message, call in refused.items():
        with pytest.raises(ValueError, match=message):
            call()
