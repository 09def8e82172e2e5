"""Early stopping and chunks."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ensembles as ens
import hypergrad as hg
from hypergrad.testing.tolerances import relative_error

KEY = jax.random.key(0)
RATE = 0.1


def train_loss(w, hparams, data, key):
    """One weight drawn to the target of its replica."""
    return (w - data) ** 2 * hparams


def parabolas(targets):
    return hg.BilevelProblem(
        ens.replicate_loss(train_loss, 0), ens.replicate_loss(train_loss, 0), jnp.asarray(targets), jnp.asarray(targets)
    )


def stopped(valid, patience, steps=40, optimiser=None, targets=(1.0, 2.0, 3.0)):
    """Weights from 0 to the targets, stopped on the losses `valid`; the end, and the state of the stopping."""
    plain = ens.replicate_optimiser(optax.sgd(RATE, 0.5) if optimiser is None else optimiser)
    inner = hg.OptaxSolver(ens.early_stopping(plain, valid, patience), steps)
    problem, start, hparams = parabolas(targets), jnp.zeros(len(targets)), jnp.asarray(1.0)
    state = inner.init(problem, start, hparams)
    state, _ = eqx.filter_jit(inner.solve)(problem, hparams, state, KEY)
    return state.params, state.solver.internal_state


def path(steps=60, targets=(1.0, 2.0, 3.0)):
    """Weights of undisturbed training, step by step, by hand."""
    w, v, all_weights = np.zeros(3), np.zeros(3), [np.zeros(3)]
    for _ in range(steps):
        v = 2 * (w - np.array(targets)) + 0.5 * v
        w = w - RATE * v
        all_weights.append(w)
    return np.array(all_weights)


def test_at_the_last_update_all_are_put_back_to_their_best():
    valid = lambda w: (w - 1.5) ** 2  # never reached by the first replica, passed by the others
    plain = ens.replicate_optimiser(optax.sgd(RATE, 0.5))
    inner = hg.OptaxSolver(ens.early_stopping(plain, valid, 100, max_updates=20), 20)
    problem, hparams = parabolas([1.0, 2.0, 3.0]), jnp.asarray(1.0)
    end, _ = inner.solve(problem, hparams, inner.init(problem, jnp.zeros(3), hparams), KEY)
    seen = path()[:20]
    best = np.abs(seen - 1.5).argmin(0)
    assert relative_error(end.params, seen[best, range(3)]) < 1e-12
    assert np.all(best < 19)
    with pytest.raises(ValueError, match="max_updates"):
        ens.early_stopping(plain, valid, 3, max_updates=0)


def test_each_replica_stops_on_its_own_and_returns_to_its_best():
    ideal = jnp.array([0.4, 1.5, 2.9])  # on the way to the targets
    valid = lambda w: (w - ideal) ** 2
    weights, state = stopped(valid, patience=3)
    losses = (path() - np.asarray(ideal)) ** 2
    for r in range(3):
        best = 0
        for t in range(40):
            best = t if losses[t, r] < losses[best, r] else best
            if t - best >= 3:
                break
        assert state.stopped[r] and not state.failed[r]
        assert state.best_step[r] == best
        np.testing.assert_allclose(weights[r], path()[best, r], rtol=1e-12)
        np.testing.assert_array_equal(weights[r], state.best[r])
    assert len({int(t) for t in state.best_step}) > 1


def test_replicas_that_improve_train_to_the_end():
    weights, state = stopped(lambda w: -w, patience=2, steps=5)
    np.testing.assert_allclose(weights, path()[5], rtol=1e-12)
    assert not state.stopped.any()
    np.testing.assert_allclose(state.best, path()[4], rtol=1e-12)
    np.testing.assert_array_equal(ens.best_replicas(state, weights, lambda w: -w), weights)
    np.testing.assert_array_equal(ens.best_replicas(state, weights, lambda w: w), state.best)


@pytest.mark.variants(quick=["3"], slow=["1"])
@pytest.mark.parametrize("knots", [1, 3])
def test_drmad_replays_who_stopped_when(knots):
    """The path of lines is right on a quadratic problem, once what is decided on the way is not decided anew."""
    pull = lambda w, hparams, data, key: (w - data - hparams) ** 2  # a mixed derivative that is constant
    problem = hg.BilevelProblem(
        ens.replicate_loss(pull, 0), lambda w, *_: jnp.sum(w**2), jnp.array([1.0, 2.0, 3.0]), jnp.ones(3)
    )
    valid = lambda w: (w - jnp.array([0.45, 1.55, 2.95])) ** 2
    inner = hg.OptaxSolver(ens.early_stopping(ens.replicate_optimiser(optax.sgd(RATE, 0.5)), valid, 3), 20)
    answer = lambda estimator: hg.value_and_hypergrad(problem, estimator)(jnp.asarray(0.1), jnp.zeros(3), KEY)[1]
    np.testing.assert_allclose(answer(hg.DrMAD(inner, knots=knots)), answer(hg.Reverse(inner)), rtol=1e-9)


@pytest.mark.row(16)
def test_patience_per_replica_needs_no_new_trace():
    traces = []

    @jax.jit
    def run(patience):
        traces.append(None)
        return stopped(lambda w: (w - 0.4) ** 2, patience, steps=20)[1].stopped

    assert run(jnp.array([2, 30, 2])).tolist() == [True, False, True]
    assert run(jnp.array([30, 2, 30])).tolist() == [False, True, False]
    assert len(traces) == 1


@pytest.mark.row(20)
def test_a_replica_that_fails_is_put_back_and_marked():
    def diverge(w):
        return jnp.where((jnp.arange(3) == 1) & (w > 1.0), jnp.nan, (w - 10) ** 2)

    weights, state = stopped(diverge, patience=50, steps=30)
    assert state.failed.tolist() == [False, True, False] and state.stopped.tolist() == [False, True, False]
    np.testing.assert_allclose(weights[jnp.array([0, 2])], path()[30, [0, 2]], rtol=1e-12)
    last_good = path()[path()[:, 1] <= 1.0, 1].max()
    np.testing.assert_allclose(weights[1], last_good, rtol=1e-12)


def test_an_update_that_is_not_finite_never_reaches_the_weights():
    explode = optax.chain(optax.stateless(lambda g, w: jnp.where((w > 2.0), jnp.nan, g)), optax.sgd(RATE, 0.5))
    weights, state = stopped(lambda w: -w, patience=50, steps=30, optimiser=explode)
    assert state.failed.tolist() == [False, True, True]  # the weights pass 2 on their way to 2 and 3
    assert ens.is_finite(weights).all() and ens.is_finite(state.inner).all()
    np.testing.assert_allclose(weights[0], path()[30, 0], rtol=1e-12)


@pytest.mark.slow
def test_hypergradients_pass_through_stopping():
    """λ scales the loss; at the best step of each replica by hand, central differences elsewhere."""
    valid = lambda w: (w - jnp.array([0.45, 1.55, 2.95])) ** 2
    inner = hg.OptaxSolver(ens.early_stopping(ens.replicate_optimiser(optax.sgd(RATE, 0.5)), valid, 3), 12)
    problem = hg.BilevelProblem(
        ens.replicate_loss(train_loss, 0), lambda w, *_: jnp.sum(w**2), jnp.array([1.0, 2.0, 3.0]), jnp.ones(3)
    )
    value = lambda h: float(hg.evaluate(inner, problem, jnp.zeros(3), jnp.asarray(h), KEY).value)
    difference = (value(1 + 1e-6) - value(1 - 1e-6)) / 2e-6
    for estimator in (hg.Reverse(inner), hg.DrMAD(inner, knots=12)):
        _, hypergradient = hg.value_and_hypergrad(problem, estimator)(jnp.asarray(1.0), jnp.zeros(3), KEY)
        np.testing.assert_allclose(hypergradient, difference, rtol=1e-7)


@pytest.mark.slow
def test_models_stopped_on_their_own_rows_are_those_trained_alone():
    """Equinox models, a split for every replica."""
    x = jnp.linspace(-1, 1, 24)
    targets = jnp.sin(3 * x) + 0.5 * jax.random.normal(KEY, (4, 24))
    held_out = ens.holdout_masks(KEY, 24, 0.4, 4)
    models = ens.init_replicas(lambda key: eqx.nn.MLP("scalar", "scalar", 12, 1, jnp.tanh, key=key), KEY, 4)

    def misfit(model, hparams, data, key):
        y, mask = data
        return jnp.sum(mask * (jax.vmap(model)(x) - y) ** 2) / jnp.sum(mask)

    @eqx.filter_jit
    def trained(replicas, y, held):
        rest = eqx.filter(replicas, eqx.is_inexact_array, inverse=True)
        one = eqx.filter_vmap(misfit, in_axes=(eqx.if_array(0), None, 0, None))
        valid = lambda weights: one(eqx.combine(weights, rest), None, (y, held), None)
        plain = ens.replicate_optimiser(optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.05)))
        inner = hg.OptaxSolver(ens.early_stopping(plain, valid, 15), 150)
        lifted = ens.replicate_loss(misfit, 0)
        problem = hg.BilevelProblem(lifted, lifted, (y, ~held), (y, held))
        state, _ = inner.solve(problem, jnp.zeros(1), inner.init(problem, replicas, jnp.zeros(1)), KEY)
        return eqx.filter(state.params, eqx.is_inexact_array), state.solver.internal_state

    together, state = trained(models, targets, held_out)
    assert state.stopped.all() and len(np.unique(state.best_step)) > 1
    one = jax.tree.map(lambda leaf: leaf[2:3] if eqx.is_array(leaf) else leaf, models)
    alone, _ = trained(one, targets[2:3], held_out[2:3])
    assert relative_error(ens.replica(together, 2), ens.replica(alone, 0)) < 1e-12


def test_early_stopping_refuses_bad_options_by_name():
    plain = ens.replicate_optimiser(optax.adam(0.1))
    with pytest.raises(ValueError, match="patience"):
        ens.early_stopping(plain, lambda w: w, 0)
    with pytest.raises(ValueError, match=r"patience must be one number, or one per replica, \(3,\)"):
        ens.early_stopping(plain, lambda w: w, jnp.array([3, 4])).init(jnp.ones(3))
    with pytest.raises(ValueError, match="valid_losses must return one loss per replica"):
        ens.early_stopping(plain, jnp.sum, 3).init(jnp.ones(3))
    with pytest.raises(ValueError, match="state of optimiser"):
        ens.early_stopping(optax.adam(0.1), lambda w: w, 3).init(jnp.ones(3))


def fit(model, x, y):
    """A whole training run of one replica."""
    weights, rest = eqx.partition(model, eqx.is_inexact_array)
    loss = lambda w: jnp.mean((jax.vmap(eqx.combine(w, rest))(x) - y) ** 2)
    step = lambda w, _: (jax.tree.map(lambda w, g: w - 0.1 * g, w, jax.grad(loss)(w)), None)
    weights, _ = jax.lax.scan(step, weights, length=5)
    return eqx.filter(weights, eqx.is_array), loss(weights)


def many(num=7):
    replicas = ens.init_replicas(lambda key: eqx.nn.MLP(2, "scalar", 16, 1, key=key), KEY, num)
    return replicas, jax.random.normal(KEY, (num, 30, 2)), jax.random.normal(KEY, (num, 30))


@pytest.mark.parametrize("chunk", [1, 3, 7, 100, None, "auto"])
def test_chunk_size_changes_nothing(chunk):
    stacked = many()
    alone = eqx.filter_jit(fit)
    expected = [alone(*(ens.replica(each, r) for each in stacked)) for r in range(7)]
    weights, losses = (
        eqx.filter_jit(ens.chunked(fit, chunk))(*stacked)
        if isinstance(chunk, int)
        else ens.chunked(fit, chunk)(*stacked)
    )
    for r, (one, loss) in enumerate(expected):
        assert relative_error(ens.replica(weights, r), one) <= 1e-12
        np.testing.assert_allclose(losses[r], loss, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.row(38)
def test_what_does_not_fit_is_refused_or_divided():
    stacked = many(64)
    sizes = []

    def seen(model, x, y):
        sizes.append(None)
        return fit(model, x, y)

    with pytest.raises(MemoryError, match=r'64 replicas need about [\d.]+ MB, 0.1 MB are free; chunk="auto"'):
        ens.chunked(fit, memory=1e5)(*stacked)
    auto = ens.chunked(seen, "auto", memory=2e5)
    _, losses = auto(*stacked)
    np.testing.assert_allclose(losses, ens.chunked(fit)(*stacked)[1], rtol=1e-12)
    traced = len(sizes)
    auto(*stacked)
    assert traced > 1 and len(sizes) == traced  # smaller sizes were tried, once
    with pytest.raises(MemoryError, match=r"one replica at a time need"):
        ens.chunked(fit, "auto", memory=10)(*stacked)


@pytest.mark.slow
def test_chunked_losses_can_be_differentiated():
    stacked = many()
    total = lambda x, chunk: jnp.sum(ens.chunked(fit, chunk)(stacked[0], x, stacked[2])[1])
    found = jax.jit(jax.grad(lambda x: total(x, 3)))(stacked[1])
    np.testing.assert_allclose(found, jax.jit(jax.grad(lambda x: total(x, 7)))(stacked[1]), rtol=1e-9, atol=1e-14)


def test_chunks_refuse_bad_sizes_by_name():
    for chunk, kind in ((0, ValueError), (-1, ValueError), (2.5, TypeError), ("many", ValueError)):
        with pytest.raises(kind, match="chunk must be a positive integer"):
            ens.chunked(fit, chunk)
    with pytest.raises(ValueError, match="leading axis"):
        ens.chunked(fit)(*many()[:2], jnp.ones((3, 30)))
