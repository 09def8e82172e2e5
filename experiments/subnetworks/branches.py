"""Networks of several branches, each on its own inputs, whose sizes and penalties are searched."""

from functools import cache, partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

import hypergrad as hg

from .tasks import Dataset, Spec

MAX_LAYERS, MAX_UNITS, MAX_CHANNELS, MAX_HEAD, EMBEDDING = 2, 32, 8, 32, 16
HYPER_STEPS = 20  # of a trial that tunes its penalties
OPTIONS: dict[str, Any] = {"activation": jax.nn.silu, "gain": 6**0.5}
Branch = hg.trials.MaskedMLP | hg.trials.MaskedCNN


def branch_space(spec: Spec) -> hg.trials.Space:
    """Returns the leaves: layers, units (channels, of images) and penalty of each branch; head and learning rate."""
    leaves: dict[str, Any] = {}
    for block, shape in spec.blocks:
        most = MAX_CHANNELS if len(shape) == 2 else MAX_UNITS
        deeper = hg.trials.When(f"layers_{block}", at_least=2)
        leaves[f"layers_{block}"] = hg.trials.Int(1, MAX_LAYERS, block=block)
        leaves[f"units_{block}_1"] = hg.trials.Int(2, most, log=True, block=block)
        leaves[f"units_{block}_2"] = hg.trials.Int(2, most, log=True, block=block, when=deeper)
        leaves[f"decay_{block}"] = hg.trials.Float(1e-7, 1e-1, log=True, block=block)
    return hg.trials.Space(
        leaves | {"head": hg.trials.Int(4, MAX_HEAD, log=True), "lr": hg.trials.Float(1e-3, 3e-2, log=True)}
    )


def make_branch(shape: tuple[int, ...], size: tuple[Array, Array], key: Array) -> Branch:
    """Returns a branch with sixteen outputs: dense layers, or convolutions where the inputs are an image."""
    options: dict[str, Any] = {"depth": size[0], "widths": size[1], "key": key, **OPTIONS}
    if len(shape) == 2:
        return hg.trials.MaskedCNN(shape, EMBEDDING, MAX_CHANNELS, MAX_LAYERS, **options)
    return hg.trials.MaskedMLP(shape[0], EMBEDDING, MAX_UNITS, MAX_LAYERS, **options)


class Branched(eqx.Module):
    """A network whose branches make sixteen numbers of their inputs each, and whose head makes outputs of these."""

    branches: tuple[Branch, ...]  # in the order of the task's blocks
    head: hg.trials.MaskedMLP
    inputs: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, spec: Spec, sizes: dict[str, Any], key: Array):
        keys = jax.random.split(key, len(spec.blocks) + 1)
        self.branches = tuple(
            make_branch(shape, sizes[block], k) for (block, shape), k in zip(spec.blocks, keys, strict=False)
        )
        total = EMBEDDING * len(spec.blocks)
        self.head = hg.trials.MaskedMLP(
            total, spec.outputs, MAX_HEAD, 1, widths=sizes["head"], depth=np.int32(1), key=keys[-1], **OPTIONS
        )
        self.inputs = spec.inputs

    def __call__(self, x: Array) -> Array:
        """Returns the outputs for one row."""
        parts = jnp.split(x, np.cumsum(self.inputs)[:-1])
        made = [branch(part) for branch, part in zip(self.branches, parts, strict=True)]
        return self.head(jax.nn.silu(jnp.concatenate(made)))

    @property
    def num_params(self) -> Array:
        """Weights and biases of all parts."""
        return sum((branch.num_params for branch in self.branches), self.head.num_params)


class Training(eqx.Module):
    """The training of branched networks by Adam: an objective's `train`.

    With `cosine` the learning rate falls to none. With `inside` the penalties follow their hypergradients.
    """

    spec: Spec = eqx.field(static=True)
    steps: int
    batch: int
    inside: hg.trials.GradientTuner | None
    solver: hg.AbstractInnerSolver

    def __init__(self, spec: Spec, steps: int, batch: int, *, cosine: bool = True, inside: bool = False):
        self.spec, self.steps, self.batch = spec, steps, batch
        # Weights that are not active have no gradient, and the root in Adam no derivative at 0.
        adam = lambda hparams: optax.adam(jnp.exp(hparams["lr"]), eps_root=1e-12)
        falling = lambda hparams: optax.adam(optax.cosine_decay_schedule(jnp.exp(hparams["lr"]), steps))
        self.solver = hg.OptaxSolver(falling if cosine else adam, steps)
        self.inside = None
        if inside:
            names = [f"decay_{block}" for block in spec.names]
            inner = hg.OptaxSolver(adam, steps // HYPER_STEPS)
            estimator = hg.Reverse(inner, warm_start=True, horizon=min(5, steps // HYPER_STEPS), check=None)
            labels = dict.fromkeys(names, "move") | {"lr": "stay"}
            outer = optax.multi_transform({"move": optax.adam(0.5), "stay": optax.set_to_zero()}, labels)
            self.inside = hg.trials.GradientTuner(branch_space(spec), [*names, "lr"], estimator, outer)

    def inner(self, model: Branched, hparams: dict[str, Array], data: Any, key: Array) -> Array:
        """Returns the loss of a minibatch and the penalties."""
        rows = hg.minibatch(key, data, self.batch)
        penalty = jnp.zeros(())
        for block, branch in zip(self.spec.names, model.branches, strict=True):
            weights = jax.tree.leaves(eqx.filter(branch, eqx.is_inexact_array))
            penalty += jnp.exp(hparams[f"decay_{block}"]) * sum(jnp.sum(w**2) for w in weights)
        return self.spec.loss(jax.vmap(model)(rows.x), rows.y) + penalty

    def outer(self, model: Branched, hparams: dict[str, Array], data: Any, key: Array) -> Array:
        """Returns the validation loss."""
        return self.spec.loss(jax.vmap(model)(data.x), data.y)

    def __call__(self, shape: Any, arrays: Any, data: tuple[Any, Any, Any], key: Array) -> dict[str, Any]:
        """Returns the entries of a result. The test set serves the report only."""
        sizes, hparams = arrays
        make_key, key = jax.random.split(key)
        train, valid, test = data
        problem = hg.BilevelProblem(self.inner, self.outer, train, valid)
        model = Branched(self.spec, sizes, make_key)
        if self.inside is None:
            estimate = hg.evaluate(self.solver, problem, model, hparams, key)
            found, trained = {"value": estimate.value, "gradients": jnp.float32(self.steps)}, estimate.params
        else:
            found, trained = self.inside.scan(problem, model, hparams, key, HYPER_STEPS)
        error = self.spec.error(jax.vmap(trained)(test.x), test.y)
        return found | {"size": model.num_params, "metrics": {"test": error}}


make_training = cache(Training)  # one for all seeds: a training built anew compiles anew


def gradients_inside(steps: int) -> int:
    """Returns the gradient equivalents of a trial that tunes its penalties.

    Training, and for each hyper-step five step-VJPs of weight 2 and an outer gradient.
    """
    each = steps // HYPER_STEPS
    return HYPER_STEPS * (each + 2 * min(5, each) + 1)


def prepare(blocks: tuple[str, ...], trial: hg.trials.Trial) -> tuple[tuple[Any, ...], Any]:
    """Returns one shape for all trials, with sizes and penalties as data."""
    params = trial.params
    sizes: dict[str, Any] = {"head": np.int32(params["head"])}
    for block in blocks:
        widths = [params[f"units_{block}_1"], params.get(f"units_{block}_2", 1)]
        sizes[block] = (np.int32(params[f"layers_{block}"]), np.array(widths, np.int32))
    names = [*(f"decay_{block}" for block in blocks), "lr"]
    return (), (sizes, {name: np.float32(np.log(params[name])) for name in names})


def objective(training: Training, data: Dataset, size: int) -> hg.trials.Vmapped:
    """Returns the objective that trains on a data set, `size` trials at once."""
    rows = (data.train, data.valid, data.test)
    return hg.trials.Vmapped(training, partial(prepare, data.spec.names), rows, size)
