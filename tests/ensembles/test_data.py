"""Replicas of data, folds, criteria over folds, and the selection."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ensembles as ens
import hypergrad as hg

KEY = jax.random.key(0)
POINTS, FOLDS, REPLICAS = 12, 3, 5


def test_monte_carlo_replicas_have_the_mean_and_covariance_of_the_data():
    C = jnp.array([[2.0, 0.5], [0.5, 1.0]])
    replicas = ens.monte_carlo(KEY, jnp.array([1.0, -3.0]), ens.cholesky(C), 40_000)
    np.testing.assert_allclose(replicas.mean(0), [1, -3], atol=4 * np.sqrt(2 / 40_000))
    np.testing.assert_allclose(np.cov(replicas, rowvar=False), C, atol=0.06)
    few = ens.monte_carlo(KEY, jnp.array([1.0, -3.0]), ens.cholesky(C), 3)
    np.testing.assert_array_equal(few, replicas[:3])


def test_bootstrap_weights_are_counts_of_a_draw_with_replacement():
    weights = ens.bootstrap_weights(KEY, 50, 400)
    assert weights.shape == (400, 50) and np.all(weights.sum(1) == 50)
    assert abs(np.mean(weights == 0) - (1 - 1 / 50) ** 50) < 0.01
    np.testing.assert_allclose(np.var(weights), 1 - 1 / 50, rtol=0.03)
    x = jax.random.normal(KEY, (50,))
    np.testing.assert_allclose(np.std(weights @ x / 50), np.std(x) / np.sqrt(50), rtol=0.1)


@pytest.mark.slow
@given(
    rows=st.sampled_from([4, 23, 40]),
    folds=st.integers(2, 4),
    seed=st.integers(0, 99),
    groups=st.sampled_from([None, 1, 3]),
)
def test_every_row_is_held_out_once(rows, folds, seed, groups):
    strata = None if groups is None else np.random.default_rng(seed).integers(0, groups, rows) * 10
    masks = np.asarray(ens.kfold_masks(jax.random.key(seed), rows, folds, strata))
    assert masks.shape == (folds, rows) and masks.dtype == bool
    assert np.all(masks.sum(0) == 1)
    assert np.ptp(masks.sum(1)) <= 1
    for group in () if strata is None else np.unique(strata):
        assert np.ptp(masks[:, strata == group].sum(1)) <= 1


def test_folds_are_random():
    first, second = (ens.kfold_masks(jax.random.key(seed), 40, 4) for seed in (0, 1))
    assert np.any(first != second)
    np.testing.assert_array_equal(first, ens.kfold_masks(jax.random.key(0), 40, 4))


def test_whole_groups_are_held_out_together():
    groups, fold = np.array([0, 0, 1, 2, 2, 3]), np.array([1, 0, -1, 0])
    masks = ens.group_masks(groups, fold)
    np.testing.assert_array_equal(masks, [[0, 0, 1, 0, 0, 1], [1, 1, 0, 0, 0, 0]])


@pytest.mark.slow
@given(seed=st.integers(0, 99), share=st.sampled_from([0.25, 0.5, 0.8]))
def test_splits_hold_out_their_fraction_of_every_group(seed, share):
    strata = np.random.default_rng(seed).permutation(np.repeat([3, 5, 9], [8, 20, 13]))
    masks = np.asarray(ens.holdout_masks(jax.random.key(seed), 41, share, 6, strata))
    for group, size in ((3, 8), (5, 20), (9, 13)):
        assert np.all(masks[:, strata == group].sum(1) == np.round(share * size))
    assert len(np.unique(masks, axis=0)) == 6
    assert np.all(ens.holdout_masks(jax.random.key(seed), 41, share, 6).sum(1) == np.round(share * 41))


def test_folds_and_replicas_cross():
    masks, replicas = ens.kfold_masks(KEY, POINTS, FOLDS), jax.random.normal(KEY, (REPLICAS, POINTS))
    all_masks, all_data = ens.cross(masks, replicas)
    masks_again, data_again = (ens.by_fold(each, FOLDS) for each in (all_masks, all_data))
    for k in range(FOLDS):
        for r in range(REPLICAS):
            np.testing.assert_array_equal(masks_again[k, r], masks[k])
            np.testing.assert_array_equal(data_again[k, r], replicas[r])


def folded(seed=0):
    """Predictions (K, R, N), data, covariance, folds as lists of rows, folds."""
    random = np.random.default_rng(seed)
    A = random.normal(size=(POINTS, POINTS))
    C, data = A @ A.T + np.eye(POINTS), random.normal(size=POINTS) + 3
    predictions = data + random.normal(size=(FOLDS, REPLICAS, POINTS))
    masks = np.asarray(ens.kfold_masks(jax.random.key(seed), POINTS, FOLDS))
    return jnp.asarray(predictions), data, C, [np.flatnonzero(m) for m in masks], ens.make_folds(masks, data, C)


def per_fold_by_hand(predictions, data, C, rows):
    """<chi2>, all sorted chi2, φ², chi2 and -log p with full covariance of every fold."""
    table = []
    for k, i in enumerate(rows):
        T, D, block = np.asarray(predictions)[k][:, i], data[i], C[np.ix_(i, i)]
        inverse, mean, n = np.linalg.inv(block), T.mean(0), len(i)
        chi2 = [(t - D) @ inverse @ (t - D) / n for t in T]
        phi2 = np.trace(inverse @ np.cov(T, rowvar=False, ddof=0)) / n
        whole = block + np.cov(T, rowvar=False)
        full = (mean - D) @ np.linalg.inv(whole) @ (mean - D) / n
        log = (n * np.log(2 * np.pi) + np.linalg.slogdet(whole / np.outer(D, D))[1] + n * full) / (2 * n)
        table.append((np.mean(chi2), np.mean(np.sort(chi2)[:3]), phi2, full, log))
    return np.array(table).T


@eqx.filter_jit
def of_folds(predictions, folds):
    best = ens.mean_loss(predictions, folds, best_fraction=0.6)
    every = (ens.fold_chi2, ens.fold_phi2, *CRITERIA)
    return {"best": best} | {function.__name__: function(predictions, folds) for function in every}


@given(seed=st.integers(0, 2**16))
def test_criteria_are_their_formulas(seed):
    predictions, data, C, rows, folds = folded(seed)
    chi2, best, phi2, full, log = per_fold_by_hand(predictions, data, C, rows)
    expected = {
        "fold_chi2": chi2,
        "fold_phi2": phi2,
        "mean_loss": np.mean(chi2),
        "best": np.mean(best),
        "worst_loss": np.max(chi2),
        "spread_loss": 1 / np.mean(phi2),
        "full_covariance_loss": np.mean(full),
        "log_probability_loss": np.mean(log),
    }
    found = of_folds(predictions, folds)
    assert found.keys() == expected.keys()
    for name, by_hand in expected.items():
        np.testing.assert_allclose(found[name], by_hand, rtol=1e-10, err_msg=name)


CRITERIA = [ens.mean_loss, ens.worst_loss, ens.spread_loss, ens.full_covariance_loss, ens.log_probability_loss]


@pytest.mark.parametrize("criterion", CRITERIA)
def test_failed_replicas_of_a_fold_count_for_nothing(criterion):
    predictions, *_, folds = folded()
    broken = predictions.at[1, 2].set(jnp.nan).at[2, 0, 0].set(jnp.inf)
    keep = jnp.all(jnp.isfinite(broken), axis=-1)
    other = predictions.at[1, 2].set(9.0).at[2, 0].set(-9.0)
    np.testing.assert_allclose(criterion(broken, folds, keep), criterion(other, folds, keep), rtol=1e-12)
    assert not np.isfinite(criterion(broken, folds))


def ridge_ensemble(criterion, num=None, drop_failed=False):
    """Linear models by gradient descent with a penalty and per-point weights: K·R replicas, each without its fold."""
    keys = jax.random.split(KEY, 3)
    x = jax.random.normal(keys[0], (POINTS, 2))
    y = x @ jnp.array([1.0, -2.0]) + 0.5
    C = 0.3 * jnp.eye(POINTS) + 0.1
    masks = ens.kfold_masks(keys[1], POINTS, FOLDS)
    held, targets = ens.cross(masks, ens.monte_carlo(keys[2], y, ens.cholesky(C), REPLICAS))

    def inner(w, hparams, data, key):
        x, targets, held = data
        errors = jnp.sum(~held * jnp.exp(hparams["weights"]) * (x @ w - targets) ** 2)
        return errors / POINTS + jnp.exp(hparams["l2"]) * jnp.sum(w**2)

    predict = lambda w, hparams, inputs: inputs @ w
    problem = hg.BilevelProblem(
        ens.replicate_loss(inner, (None, 0, 0)),
        ens.outer_loss(criterion, predict, num, drop_failed),
        train=(x, targets, held),
        valid=(x, ens.make_folds(masks, y, C)),
    )
    return problem, {"l2": jnp.asarray(-2.0), "weights": jnp.zeros(POINTS)}


@pytest.mark.row(1)
@pytest.mark.variants(
    quick=["spread_loss"], slow=["full_covariance_loss", "worst_loss", "mean_loss", "log_probability_loss"]
)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_hypergradients_of_criteria_are_finite_differences(criterion):
    """13 hyperparameters, through 15 replicas."""
    problem, hparams = ridge_ensemble(criterion)
    inner = hg.OptaxSolver(ens.replicate_optimiser(optax.sgd(0.2, 0.5)), 15)
    start = jnp.zeros((FOLDS * REPLICAS, 2)) + jax.random.normal(KEY, (FOLDS * REPLICAS, 2))
    _, found = hg.value_and_hypergrad(problem, hg.Reverse(inner))(hparams, start, KEY)
    flat, unravel = jax.flatten_util.ravel_pytree(hparams)
    value = jax.jit(lambda flat: hg.evaluate(inner, problem, start, unravel(flat), KEY).value)
    steps = 1e-5 * np.eye(flat.size)
    expected = [(value(flat + step) - value(flat - step)) / 2e-5 for step in steps]
    np.testing.assert_allclose(jax.flatten_util.ravel_pytree(found)[0], expected, rtol=1e-6, atol=1e-8)


@pytest.mark.row(13)
def test_padding_and_failed_replicas_do_not_count_in_the_outer_loss():
    problem, hparams = ridge_ensemble(ens.mean_loss)
    replicas = jax.random.normal(KEY, (FOLDS * REPLICAS, 2))
    expected = problem.outer_loss(replicas, hparams, problem.valid, KEY)
    padded = jnp.concatenate([replicas, jnp.full((3, 2), jnp.nan)])
    outer = ridge_ensemble(ens.mean_loss, num=FOLDS * REPLICAS)[0].outer_loss
    np.testing.assert_allclose(outer(padded, hparams, problem.valid, KEY), expected, rtol=1e-12)
    broken = replicas.at[4].set(jnp.nan)
    assert np.isnan(problem.outer_loss(broken, hparams, problem.valid, KEY))
    robust = ridge_ensemble(ens.mean_loss, drop_failed=True)[0].outer_loss
    value, gradient = jax.jit(jax.value_and_grad(robust))(broken, hparams, problem.valid, KEY)
    first = problem.valid[1][0]
    of_fold = ens.chi2((replicas[:4] @ problem.valid[0].T)[:, first.rows], first.data, first.factor)
    whole = ens.fold_chi2(ens.by_fold(replicas @ problem.valid[0].T, FOLDS), problem.valid[1])
    np.testing.assert_allclose(value, (np.mean(of_fold) + whole[1] + whole[2]) / 3, rtol=1e-12)
    assert np.all(np.isfinite(gradient)) and np.all(gradient[4] == 0)


@pytest.mark.slow
def test_criteria_compile_once_and_take_equinox_models():
    models = ens.init_replicas(lambda key: eqx.nn.MLP(2, "scalar", 4, 1, key=key), KEY, FOLDS * REPLICAS)
    problem, hparams = ridge_ensemble(ens.mean_loss)
    loss = ens.outer_loss(ens.mean_loss, lambda model, hparams, x: jax.vmap(model)(x))
    found = eqx.filter_jit(loss)(models, hparams, problem.valid, KEY)
    one_by_one = jnp.stack([jax.vmap(ens.replica(models, r))(problem.valid[0]) for r in range(FOLDS * REPLICAS)])
    np.testing.assert_allclose(found, ens.mean_loss(ens.by_fold(one_by_one, FOLDS), problem.valid[1]), rtol=1e-12)


LOSSES = np.array([1.5, 1.2, 1.25, 1.4, np.nan, 9.0, 1.3])
RANKING = np.array([3.0, 9.0, 4.0, 1.0, 0.0, 0.0, 5.0])


def test_one_sigma_over_trials_is_their_spread():
    found = ens.one_sigma(LOSSES, RANKING, 2, threshold=3.0)
    width = np.std([1.5, 1.2, 1.25, 1.4, 1.3])
    assert (found.lowest, found.sigma) == pytest.approx((1.2, width))
    assert found.in_band.tolist() == [False, True, True, False, False, False, True]
    assert found.chosen.tolist() == [2, 6]
    assert ens.one_sigma(LOSSES, RANKING).chosen.tolist() == [3, 0, 2, 6, 1]  # the failed trial widens the band


def test_one_sigma_over_replicas_is_theirs():
    replicas = np.tile(LOSSES[:, None], (1, 4)) + np.array([-0.11, 0.11, -0.11, 0.11])
    found = ens.one_sigma(LOSSES, RANKING, sigma="replicas", replica_losses=replicas, threshold=3.0)
    assert found.sigma == pytest.approx(0.11)
    assert found.chosen.tolist() == [2, 6, 1]


@given(order=st.permutations(range(7)))
def test_trial_order_is_irrelevant(order):
    order = np.array(order)
    chosen = ens.one_sigma(LOSSES[order], RANKING[order], 2, threshold=3.0).chosen
    assert order[chosen].tolist() == [2, 6]


def test_replicas_of_the_selected_sets():
    turns = ens.spread_replicas(7, 3)
    assert turns.tolist() == [0, 1, 2, 0, 1, 2, 0]
    drawn = ens.spread_replicas(3000, 3, KEY)
    assert np.all(np.abs(np.bincount(drawn) - 1000) < 110)
    hparams = {"rate": jnp.array([1.0, 2.0, 3.0]), "l2": jnp.arange(6.0).reshape(3, 2)}
    taken = ens.take_sets(hparams, turns)
    np.testing.assert_array_equal(taken["rate"], [1, 2, 3, 1, 2, 3, 1])
    np.testing.assert_array_equal(taken["l2"][4], [2, 3])


def test_outliers_are_removed_until_none_is_left():
    values = np.concatenate([np.random.default_rng(0).normal(1, 0.1, 200), [3.0, 300.0, np.nan]])
    assert np.flatnonzero(ens.outliers(values)).tolist() == [200, 201, 202]  # 300 hides 3 in the first round
    assert not ens.outliers(np.ones(5)).any()


def test_data_and_selection_refuse_bad_input_by_name():
    predictions, data, C, _, folds = folded()
    masks = np.ones((2, POINTS), bool)
    refused = {
        r"factor must have shape \(2, 2\)": lambda: ens.monte_carlo(KEY, jnp.ones(2), jnp.eye(3), 4),
        "num must be": lambda: ens.monte_carlo(KEY, jnp.ones(2), jnp.eye(2), 0),
        "num_rows must be": lambda: ens.bootstrap_weights(KEY, 0, 3),
        "num_folds is 5 but": lambda: ens.kfold_masks(KEY, 4, 5),
        "num_folds must be": lambda: ens.kfold_masks(KEY, 4, 1),
        "strata must have shape": lambda: ens.kfold_masks(KEY, 4, 2, [0, 1]),
        r"fold_of_group leaves no row to fold \[1\]": lambda: ens.group_masks([0, 1], [0, 2]),
        r"fold_of_group leaves no row to fold \[0\]": lambda: ens.group_masks([0, 1], [-1, -1]),
        "groups must be indices from 0 to 1": lambda: ens.group_masks([0, 2], [0, 1]),
        "fraction must be": lambda: ens.holdout_masks(KEY, 10, 1.0, 2),
        "fraction 0.01 holds out 0 of 10": lambda: ens.holdout_masks(KEY, 10, 0.01, 2),
        "pseudodata must have shape": lambda: ens.cross(masks, jnp.ones((3, 4))),
        "not a multiple of num_folds": lambda: ens.by_fold(jnp.ones(7), 2),
        r"masks: fold \[1\] is empty": lambda: ens.make_folds(masks & [[True], [False]], data, C),
        "masks must have shape": lambda: ens.make_folds(masks[:, 1:], data, C),
        "not positive definite": lambda: ens.make_folds(masks, data, C - 1e3 * np.eye(POINTS)),
        r"predictions must have shape \(3, any, any\)": lambda: ens.mean_loss(predictions[:2], folds),
        "keep must have shape": lambda: ens.mean_loss(predictions, folds, jnp.ones(3)),
        "one replica per fold": lambda: ens.spread_loss(predictions[:, :1], folds),
        "losses: none of 2 trials": lambda: ens.one_sigma([np.nan, 4.0], [1, 1], threshold=3.0),
        "ranking must have shape": lambda: ens.one_sigma(LOSSES, RANKING[:2]),
        "needs replica_losses": lambda: ens.one_sigma(LOSSES, RANKING, sigma="replicas"),
        "sigma must be": lambda: ens.one_sigma(LOSSES, RANKING, sigma="both"),
        "sets must be indices from 0 to 2": lambda: ens.take_sets({"a": jnp.ones(3)}, [3]),
    }
    for message, call in refused.items():
        with pytest.raises(ValueError, match=message):
            call()
