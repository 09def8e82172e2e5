"""A small ensemble trained on all devices of all processes; run as `ensemble_process.py port process_id out.npz`."""

import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import ensembles as ens
import hypergrad as hg

REPLICAS, POINTS, STEPS = 5, 8, 6


def loss(model, hparams, data, key):
    x, y, mask = data
    noisy = x + 0.1 * jax.random.normal(key, x.shape)
    return jnp.mean(mask * (jax.vmap(model)(noisy) - y) ** 2) + jnp.exp(hparams["l2"]) * jnp.sum(
        model.layers[0].weight ** 2
    )


def predict(model, hparams, x):
    return jax.vmap(model)(x)


def train(mesh=None):
    """A short search by the hypergradient of L1; `mesh` is all that differs between one device and many."""
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(keys[0], (POINTS, 2))
    y, C = jnp.sin(x[:, 0]), 0.1 * jnp.eye(POINTS) + 0.02
    mask = jnp.arange(POINTS) < 5
    own = {
        "replicas": ens.init_replicas(lambda key: eqx.nn.MLP(2, "scalar", 6, 1, jnp.tanh, key=key), keys[1], REPLICAS),
        "y": ens.monte_carlo(keys[2], y, ens.cholesky(C), REPLICAS),
        "mask": jnp.tile(mask, (REPLICAS, 1)),
    }
    shared = {"x": x, "folds": ens.make_folds(~mask[None], y, C), "hparams": {"l2": jnp.asarray(-3.0)}, "key": keys[3]}
    if mesh is not None:
        own, shared = ens.shard_replicas(own, mesh), ens.replicate_on_devices(shared, mesh)
    optimiser = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.05))
    problem = hg.BilevelProblem(
        ens.replicate_loss(loss, (None, 0, 0)),
        ens.outer_loss(ens.mean_loss, predict, num=REPLICAS),
        train=(shared["x"], own["y"], own["mask"]),
        valid=(shared["x"], shared["folds"]),
    )
    estimator = hg.Reverse(hg.OptaxSolver(ens.replicate_optimiser(optimiser), STEPS))
    search = hg.GradientSearch(estimator, optax.sgd(0.1))
    state = search.init(problem, own["replicas"], shared["hparams"])
    keep = lambda record: (record.value, record.hparams)
    state, history = hg.run(search, problem, state, key=shared["key"], budget=3 * STEPS, keep=keep)
    values, hparams = history.records
    models = state.best.params
    return {
        "predictions": ens.gather(eqx.filter_jit(ens.map_replicas)(predict, models, None, shared["x"]), REPLICAS),
        "weights": ens.gather(models.layers[0].weight, REPLICAS),
        "values": values,
        "hparams": hparams["l2"],
    }


if __name__ == "__main__":
    port, process_id, out = sys.argv[1:]
    jax.config.update("jax_enable_x64", True)
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=int(process_id))
    mesh = ens.replica_mesh()
    assert jax.process_count() == 2 and mesh.size == 4, (jax.process_count(), mesh)
    np.savez(out, **train(mesh))
    jax.distributed.shutdown()
