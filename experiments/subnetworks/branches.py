"""Networks of several branches, each on its own inputs, whose sizes and penalties are searched."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from math import prod
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array
from scipy.ndimage import rotate, shift

import hypergrad as hg

from ..aerosol.data import parcel
from ..common.data import digits
from .convolution import MaskedCNN

MAX_LAYERS, MAX_UNITS, MAX_CHANNELS, MAX_HEAD, EMBEDDING = 2, 32, 8, 32, 16
HYPER_STEPS = 20  # of a trial that tunes its penalties
GAIN = 6**0.5  # of the initial weights
OPTIONS: dict[str, Any] = {"activation": jax.nn.silu, "gain": GAIN}
Loss = Callable[[Array, Array], Array]  # outputs, targets -> one number


class Rows(NamedTuple):
    """Inputs of all branches side by side, and targets."""

    x: Any
    y: Any


@dataclass(frozen=True)
class Spec:
    """Which inputs go to which branch, and the losses."""

    blocks: tuple[tuple[str, tuple[int, ...]], ...]  # name and shape of the inputs; of an image where there are two
    outputs: int
    loss: Loss
    error: Loss  # what is reported

    @property
    def names(self) -> tuple[str, ...]:
        """Of the branches."""
        return tuple(name for name, _ in self.blocks)

    @property
    def inputs(self) -> tuple[int, ...]:
        """Their numbers of inputs."""
        return tuple(prod(shape) for _, shape in self.blocks)


@dataclass(frozen=True)
class Task:
    """Data, and what to do with them."""

    name: str
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


def halves(seed: int, num_train: int, num_valid: int, num_noise: int, images: bool = False) -> Task:
    """Handwritten digits: 32 pixels of the left half, 32 of the right half, as images or as numbers, and inputs of
    pure noise."""
    rows, random = digits(), np.random.default_rng(seed)
    noise = random.normal(0.0, rows.x.std(), (len(rows.x), num_noise))
    x = with_noise(rows.x.reshape(-1, 8, 8) - rows.x.mean(), noise)
    order = random.permutation(len(x))
    ends = [0, num_train, num_train + num_valid, len(x)]
    train, valid, test = (Rows(x[order[a:b]], rows.y[order[a:b]]) for a, b in pairwise(ends))
    half = (8, 4) if images else (32,)
    blocks = (("left", half), ("right", half), ("noise", (num_noise,)))
    name = "digits, cnn" if images else "digits"
    return Task(name, train, valid, test, Spec(blocks, 10, cross_entropy, wrong))


def with_noise(images: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """The left halves, the right halves and the noise, side by side."""
    parts = [np.reshape(part, (len(images), -1)) for part in (*np.split(images, 2, 2), noise)]
    return np.concatenate(parts, 1, dtype=np.float32)


def moved(task: Task, seed: int) -> Task:
    """Seven times the training digits: as they are, turned by ten degrees to either side, shifted by half a pixel to
    each of four sides; with noise of their own."""
    sides = np.split(task.train.x[:, :64].reshape(-1, 16, 4), 2, 1)
    images, random = np.concatenate(sides, 2), np.random.default_rng([seed, 1])
    options: dict[str, Any] = {"order": 1, "cval": images.min()}
    copies = [images, *(rotate(images, angle, axes=(1, 2), reshape=False, **options) for angle in (-10, 10))]
    copies += [shift(images, (0, *by), **options) for by in ((-0.5, 0), (0.5, 0), (0, -0.5), (0, 0.5))]
    count, inputs = task.train.x.shape
    x = [with_noise(copy, random.normal(0.0, task.train.x[:, 64:].std(), (count, inputs - 64))) for copy in copies]
    return replace(task, train=Rows(np.concatenate(x), np.tile(task.train.y, len(copies))))


def everything(task: Task) -> Task:
    """The same with the validation rows among the training rows."""
    return replace(task, train=Rows(*(np.concatenate(parts) for parts in zip(task.train, task.valid, strict=True))))


def aerosol() -> Task:
    """The parcel model: properties of the particles, and of the air."""
    order = [0, 1, 2, 3, 7, 4, 5, 6]
    train, valid, test = (Rows(part.x[:, order], part.y) for part in parcel()[0])
    return Task("parcel", train, valid, test, Spec((("particles", (5,)), ("air", (3,))), 1, squared, squared))


def branch_space(spec: Spec) -> hg.trials.Space:
    """Layers, units (channels, of images) and penalty of every branch; units of the head and learning rate shared."""
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


def make_branch(shape: tuple[int, ...], size: tuple[Array, Array], key: Array) -> hg.trials.MaskedMLP | MaskedCNN:
    """Sixteen numbers of some inputs: dense layers, or convolutions where the inputs are an image."""
    options: dict[str, Any] = {"depth": size[0], "widths": size[1], "key": key}
    if len(shape) == 2:
        return MaskedCNN(shape, EMBEDDING, MAX_CHANNELS, gain=GAIN, **options)
    return hg.trials.MaskedMLP(shape[0], EMBEDDING, MAX_UNITS, MAX_LAYERS, **OPTIONS, **options)


class Branched(eqx.Module):
    """Every branch makes sixteen numbers of its inputs, the head makes outputs of all of these."""

    branches: tuple[hg.trials.MaskedMLP | MaskedCNN, ...]  # in the order of the task's blocks
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
    inside: hg.trials.GradientTuner | None
    solver: hg.AbstractInnerSolver

    def __init__(self, spec: Spec, steps: int, batch: int, cosine: bool, space: hg.trials.Space | None = None):
        self.spec, self.steps, self.batch = spec, steps, batch
        # Weights that are not active have no gradient, and the root in Adam no derivative at 0.
        adam = lambda hparams: optax.adam(jnp.exp(hparams["lr"]), eps_root=1e-12)
        falling = lambda hparams: optax.adam(optax.cosine_decay_schedule(jnp.exp(hparams["lr"]), steps))
        self.solver = hg.OptaxSolver(falling if cosine else adam, steps)
        self.inside = None
        if space is not None:
            names = [f"decay_{block}" for block in spec.names]
            inner = hg.OptaxSolver(adam, steps // HYPER_STEPS)
            estimator = hg.Reverse(inner, warm_start=True, horizon=min(5, steps // HYPER_STEPS), check=None)
            labels = dict.fromkeys(names, "move") | {"lr": "stay"}
            outer = optax.multi_transform({"move": optax.adam(0.5), "stay": optax.set_to_zero()}, labels)
            self.inside = hg.trials.GradientTuner(space, [*names, "lr"], estimator, outer)

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
            found, trained = {"value": estimate.value, "gradients": jnp.float32(self.steps)}, estimate.params
        else:
            found, trained = self.inside.scan(problem, model, hparams, key, HYPER_STEPS)
        error = self.spec.error(jax.vmap(trained)(test.x), test.y)
        return found | {"size": model.num_params, "metrics": {"test": error}}


def prepare(blocks: tuple[str, ...], trial: hg.trials.Trial) -> tuple[tuple, Any]:
    """All trials have one shape: sizes and penalties are data."""
    params = trial.params
    sizes: dict[str, Any] = {"head": np.int32(params["head"])}
    for block in blocks:
        widths = [params[f"units_{block}_1"], params.get(f"units_{block}_2", 1)]
        sizes[block] = (np.int32(params[f"layers_{block}"]), np.array(widths, np.int32))
    names = [*(f"decay_{block}" for block in blocks), "lr"]
    return (), (sizes, {name: np.float32(np.log(params[name])) for name in names})


def objective(training: Training, task: Task, size: int) -> hg.trials.Vmapped:
    """Trials on the task's data, `size` at once."""
    return hg.trials.Vmapped(training, partial(prepare, task.spec.names), (task.train, task.valid, task.test), size)
