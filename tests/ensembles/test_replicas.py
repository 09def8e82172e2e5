"""Replicas in a batch are replicas alone."""

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
from hypergrad.testing.tolerances import relative_error

STEPS = 10
OPTIMISER = optax.chain(optax.clip_by_global_norm(0.3), optax.adam(0.02))
ALONE, TOGETHER = (hg.OptaxSolver(o, STEPS) for o in (OPTIMISER, ens.replicate_optimiser(OPTIMISER)))


def make(key):
    return eqx.nn.MLP(2, "scalar", 8, 1, activation=jnp.tanh, key=key)


def loss(model, hparams, data, key):
    """Every replica its own targets and mask, its own minibatch noise; inputs and penalty shared."""
    x, y, mask = data
    noisy = x + 0.1 * jax.random.normal(key, x.shape, x.dtype)
    misfit = jnp.sum(mask * (jax.vmap(model)(noisy) - y) ** 2) / jnp.sum(mask)
    return misfit + jnp.exp(hparams["l2"]) * optax.tree.norm(eqx.filter(model, eqx.is_inexact_array), squared=True)


LIFTED = ens.replicate_loss(loss, data_axes=(None, 0, 0))


def setting(num, dtype=jnp.float64, key=0):
    keys = jax.random.split(jax.random.key(key), 4)
    x = jax.random.normal(keys[0], (20, 2), dtype)
    y = jnp.sin(x[:, 0]) + 0.3 * jax.random.normal(keys[1], (num, 20), dtype)
    mask = jax.random.bernoulli(keys[2], 0.7, (num, 20)).astype(dtype)
    cast = lambda model: jax.tree.map(lambda a: a.astype(dtype) if eqx.is_inexact_array(a) else a, model)
    return ens.init_replicas(lambda key: cast(make(key)), keys[3], num), {"l2": jnp.asarray(-5.0, dtype)}, (x, y, mask)


def train(inner, training_loss, model, hparams, data, key):
    problem = hg.BilevelProblem(training_loss, training_loss, data, data)
    state = inner.init(problem, model, hparams)
    return eqx.filter_jit(inner.solve)(problem, hparams, state, key)[0].params


def loss_of_one(model, hparams, data, key):
    """The loss of one replica, its number among the data, so that one program serves all."""
    *rows, r = data
    return loss(model, hparams, rows, jax.random.fold_in(key, r))


def alone_after_training(replicas, hparams, data, key, r):
    x, y, mask = data
    return train(ALONE, loss_of_one, ens.replica(replicas, r), hparams, (x, y[r], mask[r], jnp.int32(r)), key)


@pytest.mark.row(10)
@pytest.mark.variants(slow=["float32-*", "float64-*"])
@pytest.mark.parametrize(("dtype", "limit"), [(jnp.float64, 1e-12), (jnp.float32, 1e-6)])
def test_trained_together_is_trained_alone(dtype, limit):
    replicas, hparams, data = setting(5, dtype)
    key = jax.random.key(1)
    together = train(TOGETHER, LIFTED, replicas, hparams, data, key)
    assert relative_error(arrays(together), arrays(replicas)) > 0.05
    for r in range(5):
        one = alone_after_training(replicas, hparams, data, key, r)
        assert relative_error(arrays(ens.replica(together, r)), arrays(one)) <= limit


@pytest.mark.slow
def test_an_optimiser_that_couples_replicas_is_caught():
    replicas, hparams, data = setting(3)
    key = jax.random.key(1)
    coupled = train(ALONE, LIFTED, replicas, hparams, data, key)
    one = alone_after_training(replicas, hparams, data, key, 0)
    assert relative_error(arrays(ens.replica(coupled, 0)), arrays(one)) > 1e-3


QUIET = ens.replicate_loss(lambda *args: loss(*args[:3], jax.random.key(0)), data_axes=(None, 0, 0))
slope_of_quiet = eqx.filter_jit(eqx.filter_value_and_grad(QUIET))


@pytest.mark.row(8)
@pytest.mark.slow
@given(order=st.permutations(range(4)))
def test_permuting_replicas_permutes_the_result(order):
    replicas, hparams, (x, y, mask) = setting(4)
    order = np.array(order)
    take = lambda tree: jax.tree.map(lambda a: a[order] if eqx.is_array(a) else a, tree)
    value = lambda replicas, y, mask: slope_of_quiet(replicas, hparams, (x, y, mask), jax.random.key(0))
    total, gradient = value(replicas, y, mask)
    total_permuted, gradient_permuted = value(take(replicas), y[order], mask[order])
    np.testing.assert_allclose(total_permuted, total, rtol=1e-12)
    assert relative_error(arrays(gradient_permuted), arrays(take(gradient))) < 1e-12


INNER = {
    "reverse": lambda inner: hg.Reverse(inner),
    "reverse sqrt": lambda inner: hg.Reverse(inner, checkpoints="sqrt"),
    "drmad": lambda inner: hg.DrMAD(inner, knots=3),
    "greedy": lambda inner: hg.Greedy(inner),
    "forward": lambda inner: hg.Forward(inner),
    "implicit": lambda inner: hg.Implicit(inner, hg.Neumann(20, step_size=0.05)),
}


@pytest.mark.variants(slow=["forward", "greedy", "drmad", "implicit"])
@pytest.mark.parametrize("name", INNER)
def test_hypergradient_of_a_sum_over_members_is_the_sum_of_theirs(name):
    replicas, hparams, (x, y, mask) = setting(3)
    plain = optax.sgd(0.05, 0.9)
    outer = lambda model, hparams, data, key: jnp.mean((jax.vmap(model)(data[0]) - data[1]) ** 2)
    problem = hg.BilevelProblem(
        ens.replicate_loss(still, (None, 0, 0)), ens.replicate_loss(outer, (None, 0)), (x, y, mask), (x[:7], y[:, :7])
    )
    estimator = INNER[name](hg.OptaxSolver(ens.replicate_optimiser(plain), STEPS))
    value, total = hg.value_and_hypergrad(problem, estimator)(hparams, replicas, jax.random.key(1))
    parts = []
    for r in range(3):
        problem = hg.BilevelProblem(still, outer, (x, y[r], mask[r]), (x[:7], y[r, :7]))
        one = hg.value_and_hypergrad(problem, INNER[name](hg.OptaxSolver(plain, STEPS)))
        parts.append(one(hparams, ens.replica(replicas, r), jax.random.key(1)))
    np.testing.assert_allclose(value, sum(v for v, _ in parts), rtol=1e-12)
    np.testing.assert_allclose(total["l2"], sum(h["l2"] for _, h in parts), rtol=1e-9)


def still(model, hparams, data, key):
    """A loss without noise, so that one key serves all."""
    x, y, mask = data
    misfit = jnp.sum(mask * (jax.vmap(model)(x) - y) ** 2) / jnp.sum(mask)
    return misfit + jnp.exp(hparams["l2"]) * optax.tree.norm(eqx.filter(model, eqx.is_inexact_array), squared=True)


@pytest.mark.slow
def test_every_replica_has_its_own_hyperparameters_and_optimiser():
    replicas, _, data = setting(3)
    hparams = {"l2": jnp.array([-6.0, -2.0, 0.0])}
    rates = jnp.array([0.01, 0.03, 0.1])
    lifted = ens.replicate_loss(loss, (None, 0, 0), hparams_axes=0)
    inner = hg.OptaxSolver(ens.replicate_optimiser(optax.adam, rates), STEPS)
    key = jax.random.key(1)
    together = train(inner, lifted, replicas, hparams, data, key)
    x, y, mask = data
    for r in range(3):
        own_key = lambda model, h, data, key, r=r: loss(model, h, data, jax.random.fold_in(key, r))
        alone = hg.OptaxSolver(optax.adam(rates[r]), STEPS)
        own = {"l2": hparams["l2"][r]}
        one = train(alone, own_key, ens.replica(replicas, r), own, (x, y[r], mask[r]), key)
        assert relative_error(arrays(ens.replica(together, r)), arrays(one)) <= 1e-12


@pytest.mark.slow
def test_replicas_do_not_depend_on_how_many_there_are():
    few, many = (ens.init_replicas(make, jax.random.key(0), num) for num in (2, 5))
    assert relative_error(arrays(few), arrays(jax.tree.map(lambda a: a[:2], arrays(many)))) == 0
    one = make(ens.replica_keys(jax.random.key(0), 5)[3])
    assert relative_error(arrays(ens.replica(many, 3)), arrays(one)) == 0
    assert ens.replica(many, 3)(jnp.ones(2)).shape == ()


@pytest.mark.row(16)
def test_one_trace_serves_any_data():
    replicas, hparams, (x, y, mask) = setting(3)
    traces = []

    def counted(*args):
        traces.append(None)
        return still(*args)

    lifted = eqx.filter_jit(ens.replicate_loss(counted, (None, 0, 0)))
    for changed in (mask, 1 - mask, jnp.ones_like(mask)):
        lifted(replicas, hparams, (x, y, changed), jax.random.key(0))
    assert len(traces) == 1


@pytest.mark.slow
@pytest.mark.row(20)
def test_failed_replicas_are_found_and_do_not_touch_others():
    replicas, hparams, (x, y, mask) = setting(3)
    key = jax.random.key(1)
    clean = train(TOGETHER, LIFTED, replicas, hparams, (x, y, mask), key)
    broken = eqx.tree_at(lambda m: m.layers[0].bias, replicas, replicas.layers[0].bias.at[1, 0].set(1e200))
    late = lambda model, hparams, data, key: loss(model, hparams, data, key) * jnp.exp(model.layers[0].bias[0])
    after = train(TOGETHER, ens.replicate_loss(late, (None, 0, 0)), broken, hparams, (x, y, mask), key)
    assert ens.is_finite(after).tolist() == [True, False, True]
    whole = train(TOGETHER, ens.replicate_loss(late, (None, 0, 0)), replicas, hparams, (x, y, mask), key)
    for r in (0, 2):
        assert relative_error(arrays(ens.replica(after, r)), arrays(ens.replica(whole, r))) <= 1e-12
    assert ens.is_finite(clean).all()


def test_lifting_refuses_bad_input_by_name():
    _, hparams, data = setting(3)
    with pytest.raises(ValueError, match="num must be a positive integer"):
        ens.init_replicas(make, jax.random.key(0), 0)
    with pytest.raises(ValueError, match=r"replicas\['b'\]"):
        LIFTED({"a": jnp.ones((3, 2)), "b": jnp.ones(2)}, hparams, data, jax.random.key(0))
    with pytest.raises(ValueError, match="no arrays"):
        ens.is_finite({"a": "text"})
    with pytest.raises(TypeError, match="settings"):
        ens.replicate_optimiser(optax.adam)
    with pytest.raises(TypeError, match="settings"):
        ens.replicate_optimiser(optax.adam(0.1), jnp.ones(3))


LOSSES = lambda params: jnp.sum(params["w"] ** 2, 1)
STOPPING = ens.early_stopping(ens.replicate_optimiser(optax.sgd(0.1)), LOSSES, 2)
TAKERS = {
    "best_replicas": (lambda tree: ens.best_replicas(STOPPING.init({"w": jnp.ones((3, 2))}), tree, LOSSES), "params"),
    "chunked": (lambda tree: ens.chunked(lambda one: one, "auto")(tree), "replicas"),
    "cross_validation": (lambda tree: ens.cross_validation(loss, loss, tree, 2, jax.random.key(0)), "data"),
    "gather": (ens.gather, "replicas"),
    "Laplace": (
        lambda tree: ens.evidence.negative_log_joint(jnp.ravel, tree, 0.0, ens.evidence.Gaussian(jnp.ones(3), 0.0)),
        "model",
    ),
    "MeanField": (ens.MeanField, "model"),
    "replicate_on_devices": (lambda tree: ens.replicate_on_devices(tree, ens.replica_mesh()), "tree"),
    "replicate_optimiser": (ens.replicate_optimiser(optax.sgd(0.1)).init, "params"),
    "shard_replicas": (lambda tree: ens.shard_replicas(tree, ens.replica_mesh()), "replicas"),
    "take_sets": (lambda tree: ens.take_sets(tree, jnp.array([0])), "hparams"),
}


@pytest.mark.row(23)
@pytest.mark.parametrize("taker", TAKERS)
def test_arrays_without_numbers_of_jax_are_named_by_their_path(taker):
    take, name = TAKERS[taker]
    masked = np.ma.array(np.ones((3, 2)), mask=np.eye(3, 2))
    for unknown in (masked, np.ones((3, 2), ">f8"), np.ones((3, 2), np.longdouble), np.full((3, 2), None)):
        with pytest.raises(TypeError, match=rf"{name}(\[0\])?\['v'\] (has dtype|is a masked)"):
            take({"w": jnp.ones((3, 2)), "v": unknown})


class Hostile:
    def _raise(self, *_):
        raise RuntimeError

    __repr__ = __len__ = __array__ = __bool__ = _raise


@pytest.mark.parametrize("taker", TAKERS)
def test_deleted_arrays_and_trees_without_order_are_named(taker):
    take, name = TAKERS[taker]
    gone = jnp.ones((3, 2))
    gone.delete()
    for tree in ({"w": gone, "v": jnp.ones((3, 2))}, {"w": jnp.ones((3, 2)), 1: jnp.ones((3, 2))}):
        with pytest.raises(ValueError, match=f"^{name}.* (has been deleted|is no tree)"):
            take(tree)


def test_foreign_objects_are_named():
    for taker in ("best_replicas", "chunked", "MeanField", "replicate_optimiser", "take_sets"):
        take, name = TAKERS[taker]
        with pytest.raises(ValueError, match=f"^{name} "):
            take(Hostile())


@pytest.mark.parametrize("drop_failed", [False, True])
def test_a_loss_per_row_is_refused(drop_failed):
    per_row = ens.replicate_loss(lambda model, hparams, data, key: (model * data) ** 2, drop_failed=drop_failed)
    with pytest.raises(ValueError, match=r"loss must return a scalar, or \(scalar, state\), it returned \(2,\)"):
        per_row(jnp.ones((3, 2)), None, jnp.ones(2), jax.random.key(0))


def test_data_of_another_number_of_replicas_name_the_loss():
    total = ens.replicate_loss(lambda model, hparams, data, key: jnp.sum(model * data), data_axes=0)
    with pytest.raises(ValueError, match="loss fails on replicas, hparams and data"):
        total(jnp.ones((3, 2)), None, jnp.ones((4, 2)), jax.random.key(0))


def test_a_model_without_arrays_is_refused():
    with pytest.raises(ValueError, match="make must return a model with arrays"):
        ens.init_replicas(lambda key: 3, jax.random.key(0), 2)


def test_complex_weights_have_no_distribution():
    for taker in ("MeanField", "Laplace"):
        with pytest.raises(TypeError, match=r"^model\['v'\] is complex"):
            TAKERS[taker][0]({"v": jnp.ones(2, complex), "w": jnp.ones(2)})


def arrays(tree):
    return eqx.filter(tree, eqx.is_inexact_array)
