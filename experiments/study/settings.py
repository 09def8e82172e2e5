"""Data sets of the study, each with its rows, its model, its likelihood, and the length of its training."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, PyTree

import hypergrad as hg
from ensembles import MeanField, evidence

from ..common.data import Rows, Splits
from . import activity, images, polynomial

DataName = Literal["synthetic", "digits", "wisdm", "wisdm-raw", "mnist", "mnist-small"]
EVERYTHING = 10**9
LINEAR_SOLVER = hg.CG(max_steps=10, damping=0.1)  # one-sample Hessians are indefinite


@dataclass(frozen=True)
class Setting:
    """One data set, and how a model is trained on it."""

    sample: Callable[[int], Splits]  # seed -> rows
    model: Callable[[Array], Any]  # key -> model with `layers`
    log_likelihood: Callable[[Any, Rows], Array]  # nats of every row
    likelihood: Callable[[Rows], evidence.Likelihood]  # the same of the outputs, all constants included
    error: Callable[[Any, Rows], Array]  # RMSE or accuracy
    box: tuple[float, float]  # log-variances are kept here
    prior: tuple[float, float]  # and searched here, as the published random search does
    outer_steps: int  # the published number of iterations, `l`
    inner_steps: int  # updates of the weights per iteration, `η`
    period: int  # updates of the weights per hyper-update of drmad, hoag and reverse
    batch: int
    outer_batch: int
    inner_lr: float
    knots: int = 1  # of drmad
    linear_solver: hg.linear.AbstractLinearSolver = LINEAR_SOLVER  # of hoag
    average: float | None = None  # of the weights, see `hg.OptaxSolver`
    evaluation_rows: int = EVERYTHING  # at most, where the criterion is measured
    expected: Callable[[MeanField, Rows], Array] | None = None  # the mean log-likelihood of every row in closed form
    offset: Any = None  # added to a log-variance: the weights are trained in units of their own

    @property
    def updates(self) -> int:
        """The budget of one run, in updates of the weights."""
        return self.outer_steps * self.inner_steps

    @cached_property
    def weights(self) -> PyTree:
        """A tree of zeros like the weights of the model."""
        shapes = jax.eval_shape(lambda key: eqx.filter(self.model(key), eqx.is_inexact_array), jax.random.key(0))
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    @cached_property
    def optimiser(self) -> optax.GradientTransformation:
        """Adam on the weights."""
        return optax.adam(self.inner_lr)

    def training(self, steps: int) -> hg.OptaxSolver:
        """Returns the inner solver for so many updates of the weights."""
        return hg.OptaxSolver(self.optimiser, steps, average=self.average)

    def chunk(self, steps: int, measurements: int) -> int:
        """Returns the hyper-steps, each of so many updates, between two of so many measurements."""
        return max(1, self.updates // steps // measurements)


def classify(model: Any, rows: Rows) -> Array:
    """Returns log p(y | x) of every row under softmax."""
    x, y = rows
    return jnp.take_along_axis(log_probs(model, x), y[:, None], axis=1)[:, 0]


def log_probs(model: Any, x: ArrayLike) -> Array:
    """Returns the log-probabilities of the classes, of shape (rows, classes)."""
    return jax.nn.log_softmax(jax.vmap(model)(x))


def accuracy(model: Any, rows: Rows) -> Array:
    """Returns the fraction of rows whose class has the largest logit."""
    return jnp.mean(jnp.argmax(jax.vmap(model)(rows.x), -1) == rows.y)


def regress(model: Any, rows: Rows) -> Array:
    """Returns log N(y | f(x), 1) of every row without the constant -½ log 2π."""
    return -((jax.vmap(model)(rows.x) - rows.y) ** 2) / 2


def rmse(model: Any, rows: Rows) -> Array:
    """Returns the root of the mean squared error."""
    return jnp.sqrt(-2 * jnp.mean(regress(model, rows)))


def network(
    inputs: int, outputs: int | Literal["scalar"], hidden: int, activation: Callable[..., Any] = jax.nn.relu
) -> Callable[[Array], eqx.nn.MLP]:
    """Returns a function from a key to a network with one hidden layer."""
    return lambda key: eqx.nn.MLP(inputs, outputs, hidden, 1, activation=activation, key=key)


IMAGES: dict[str, Any] = {
    "log_likelihood": classify,
    "likelihood": lambda rows: evidence.Categorical(rows.y),
    "error": accuracy,
}
SERIES: dict[str, Any] = {
    "log_likelihood": regress,
    "likelihood": lambda rows: evidence.Gaussian(rows.y, 0.0),
    "error": rmse,
}
WIDE: dict[str, Any] = {"box": (-11.0, 5.0), "prior": (-10.0, 4.0)}  # of log-precisions [-5, 11] and [-4, 10]


def setting(
    name: DataName, data_dir: Path | None, scale: float = 1.0, period: int | None = None, average: float | None = None
) -> Setting:
    """Returns the setting of a data set by its name; `scale` multiplies the updates of the weights."""
    make: Callable[..., Setting] = partial(Setting, period=period or 10, average=average)
    steps = lambda count: max(10, round(count * scale / 10) * 10)
    if name == "synthetic":
        rows = polynomial.NUM_ROWS
        make = partial(make, polynomial.sample, polynomial.Linear, **SERIES, box=(-10.5, 2.5), prior=(-10.0, 2.0))
        make = partial(make, outer_steps=50, inner_steps=steps(1000), batch=rows, outer_batch=rows, inner_lr=0.01)
        return make(expected=polynomial.expected_log_likelihood, offset=polynomial.OFFSET)
    make = partial(make, batch=100, outer_batch=500, inner_lr=0.01, **WIDE)
    if name == "wisdm":
        sample, inputs, classes = activity.features(data_dir)
        return make(sample, network(inputs, classes, 10), **IMAGES, outer_steps=50, inner_steps=steps(100))
    if name == "wisdm-raw":
        sample, inputs = activity.series(data_dir)
        return make(sample, network(inputs, "scalar", 10), **SERIES, outer_steps=50, inner_steps=steps(100))
    sample, inputs, hidden = images.samples(name, data_dir)
    outer, inner = (25, 600) if name == "mnist" else (50, 100)
    return make(sample, network(inputs, 10, hidden), **IMAGES, outer_steps=outer, inner_steps=steps(inner))
