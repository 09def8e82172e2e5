"""Networks of several branches, each on its own inputs, whose sizes and penalties are searched."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

import hypergrad as hg

from ..aerosol.data import parcel
from ..common.data import digits

MAX_LAYERS, MAX_UNITS, MAX_HEAD, EMBEDDING = 2, 32, 32, 16
HYPER_STEPS = 20  # of a trial that tunes its penalties
GAIN = 6**0.5  # of the initial weights
Loss = Callable[[Array, Array], Array]  # outputs, targets -> one number


class Rows(NamedTuple):
    """Inputs of all branches side by side, and targets."""

    x: Any
    y: Any


@dataclass(frozen=True)
class Spec:
    """Which inputs go to which branch, and the losses."""

    blocks: tuple[tuple[str, int], ...]  # name and number of inputs
    outputs: int
    loss: Loss
    error: Loss  # what is reported

    @property
    def names(self) -> tuple[str, ...]:
        """Of the branches."""
        return tuple(name for name, _ in self.blocks)


@dataclass(frozen=True)
class Task:
    """Data, and what to do with them."""

    train: Rows
    valid: Rows
    test: Rows
    spec: Spec


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Mean over rows."""
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def wrong(logits: Array, labels: Array) -> Array:
    """Fraction of wrong labels."""
    return jnp.mean(jnp.argmax(logits, 1) != labels)


def squared(outputs: Array, targets: Array) -> Array:
    """Mean squared error of fractions."""
    return jnp.mean((jax.nn.sigmoid(outputs) - targets) ** 2)


def halves(seed: int, num_train: int, num_valid: int, num_noise: int) -> Task:
    """Handwritten digits: 32 pixels of the left half, 32 of the right half, and inputs of pure noise."""
    rows, random = digits(), np.random.default_rng(seed)
    images = rows.x.reshape(-1, 8, 8)
    noise = random.normal(0.0, images.std(), (len(images), num_noise)).astype(np.float32)
    parts = [images[:, :, :4].reshape(-1, 32), images[:, :, 4:].reshape(-1, 32), noise]
    x = np.concatenate([part - part.mean() for part in parts], 1)
    order = random.permutation(len(x))
    ends = [0, num_train, num_train + num_valid, len(x)]
    train, valid, test = (Rows(x[order[a:b]], rows.y[order[a:b]]) for a, b in pairwise(ends))
    return Task(train, valid, test, Spec((("left", 32), ("right", 32), ("noise", num_noise)), 10, cross_entropy, wrong))


def everything(task: Task) -> Task:
    """The same with the validation rows among the training rows."""
    rows = Rows(*(np.concatenate(parts) for parts in zip(task.train, task.valid, strict=True)))
    return Task(rows, task.valid, task.test, task.spec)


def aerosol() -> Task:
    """The parcel model: properties of the particles, and of the air."""
    order = [0, 1, 2, 3, 7, 4, 5, 6]
    train, valid, test = (Rows(part.x[:, order], part.y) for part in parcel()[0])
    return Task(train, valid, test, Spec((("particles", 5), ("air", 3)), 1, squared, squared))


def branch_space(blocks: tuple[str, ...]) -> hg.Space:
    """Layers, units and penalty of every branch; units of the head and learning rate are shared."""
    leaves: dict[str, Any] = {}
    for block in blocks:
        leaves[f"layers_{block}"] = hg.Int(1, MAX_LAYERS, block=block)
        leaves[f"units_{block}_1"] = hg.Int(2, MAX_UNITS, log=True, block=block)
        deeper = hg.When(f"layers_{block}", at_least=2)
        leaves[f"units_{block}_2"] = hg.Int(2, MAX_UNITS, log=True, block=block, when=deeper)
        leaves[f"decay_{block}"] = hg.Float(1e-7, 1e-1, log=True, block=block)
    return hg.Space(leaves | {"head": hg.Int(4, MAX_HEAD, log=True), "lr": hg.Float(1e-3, 3e-2, log=True)})


class Branched(eqx.Module):
    """Every branch makes sixteen numbers of its inputs, the head makes outputs of all of these."""

    branches: tuple[hg.MaskedMLP, ...]  # in the order of the task's blocks
    head: hg.MaskedMLP
    inputs: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, spec: Spec, sizes: dict[str, Any], key: Array):
        keys = jax.random.split(key, len(spec.blocks) + 1)
        options: dict[str, Any] = {"activation": jax.nn.silu, "gain": GAIN}
        self.branches = tuple(
            hg.MaskedMLP(
                inputs,
                EMBEDDING,
                MAX_UNITS,
                MAX_LAYERS,
                widths=sizes[block][1],
                depth=sizes[block][0],
                key=k,
                **options,
            )
            for (block, inputs), k in zip(spec.blocks, keys, strict=False)
        )
        total = EMBEDDING * len(spec.blocks)
        self.head = hg.MaskedMLP(
            total, spec.outputs, MAX_HEAD, 1, widths=sizes["head"], depth=np.int32(1), key=keys[-1], **options
        )
        self.inputs = tuple(inputs for _, inputs in spec.blocks)

    def __call__(self, x: Array) -> Array:
        """The outputs for one row."""
        parts = jnp.split(x, np.cumsum(self.inputs)[:-1])
        made = [branch(part) for branch, part in zip(self.branches, parts, strict=True)]
        return self.head(jax.nn.silu(jnp.concatenate(made)))

    @property
    def num_params(self) -> Array:
        """Of all parts."""
        return sum((branch.num_params for branch in self.branches), self.head.num_params)


class Training(eqx.Module):
    """Trains branched networks by Adam: an objective's `train`.

    With `cosine` the learning rate falls to none. With a `space` the penalties follow their hypergradients.
    """

    spec: Spec = eqx.field(static=True)
    steps: int
    batch: int
    inside: hg.TuneInside | None
    solver: hg.JaxoptSolver

    def __init__(self, spec: Spec, steps: int, batch: int, cosine: bool, space: hg.Space | None = None):
        self.spec, self.steps, self.batch = spec, steps, batch
        # Weights that are not active have no gradient, and the root in Adam no derivative at 0.
        adam = lambda hparams: optax.adam(jnp.exp(hparams["lr"]), eps_root=1e-12)
        falling = lambda hparams: optax.adam(optax.cosine_decay_schedule(jnp.exp(hparams["lr"]), steps))
        self.solver = hg.OptaxSolver(falling if cosine else adam, steps)
        self.inside = None
        if space is not None:
            names = [f"decay_{block}" for block in spec.names]
            inner = hg.OptaxSolver(adam, steps // HYPER_STEPS)
            estimator = hg.Reverse(inner, warm_start=True, horizon=min(5, steps // HYPER_STEPS))
            labels = dict.fromkeys(names, "move") | {"lr": "stay"}
            outer = optax.multi_transform({"move": optax.adam(0.5), "stay": optax.set_to_zero()}, labels)
            self.inside = hg.TuneInside(space, [*names, "lr"], estimator, outer)

    def inner(self, model: Branched, hparams: dict[str, Array], data: Rows, key: Array) -> Array:
        """The loss of a minibatch and the penalties."""
        rows = hg.minibatch(key, data, self.batch)
        penalty = jnp.zeros(())
        for block, branch in zip(self.spec.names, model.branches, strict=True):
            weights = jax.tree.leaves(eqx.filter(branch, eqx.is_inexact_array))
            penalty += jnp.exp(hparams[f"decay_{block}"]) * sum(jnp.sum(w**2) for w in weights)
        return self.spec.loss(jax.vmap(model)(rows.x), rows.y) + penalty

    def outer(self, model: Branched, hparams: dict[str, Array], data: Rows, key: Array) -> Array:
        """The validation loss."""
        return self.spec.loss(jax.vmap(model)(data.x), data.y)

    def __call__(self, shape: Any, arrays: Any, data: tuple[Rows, Rows, Rows], key: Array) -> dict[str, Any]:
        """The entries of a result. The test set is looked at for the report only."""
        sizes, hparams = arrays
        make_key, key = jax.random.split(key)
        train, valid, test = data
        problem = hg.BilevelProblem(self.inner, self.outer, train, valid)
        model = Branched(self.spec, sizes, make_key)
        if self.inside is None:
            estimate = hg.evaluate(self.solver, problem, model, hparams, key)
            found, trained, gradients = {"value": estimate.value}, estimate.params, jnp.float32(self.steps)
        else:
            found, trained = self.inside.scan(problem, model, hparams, key, HYPER_STEPS)
            gradients = found["metrics"]["gradients"]
        error = self.spec.error(jax.vmap(trained)(test.x), test.y)
        return found | {"size": model.num_params, "metrics": {"test": error, "gradients": gradients}}


def prepare(blocks: tuple[str, ...], trial: hg.Trial) -> tuple[tuple, Any]:
    """All trials have one shape: sizes and penalties are data."""
    params = trial.params
    sizes: dict[str, Any] = {"head": np.int32(params["head"])}
    for block in blocks:
        widths = [params[f"units_{block}_1"], params.get(f"units_{block}_2", 1)]
        sizes[block] = (np.int32(params[f"layers_{block}"]), np.array(widths, np.int32))
    names = [*(f"decay_{block}" for block in blocks), "lr"]
    return (), (sizes, {name: np.float32(np.log(params[name])) for name in names})


def objective(training: Training, task: Task, size: int) -> hg.Vmapped:
    """Trials on the task's data, `size` at once."""
    return hg.Vmapped(training, partial(prepare, task.spec.names), (task.train, task.valid, task.test), size)
