"""What a data set brings to the study: its rows, its model, its likelihood, and how long it is trained."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from ensembles import MeanField

from ..common.data import Rows
from . import activity, images, polynomial

DataName = Literal["synthetic", "digits", "wisdm", "wisdm-raw", "mnist", "mnist-small"]


Sample = tuple[Rows, Rows]  # training and test rows of one seed; only the end of a cell may look at the second


@dataclass(frozen=True)
class Setting:
    """One data set of the study."""

    sample: Callable[[int], Sample]  # seed -> rows
    model: Callable[[Array], Any]  # key -> model with `layers`
    log_likelihood: Callable[[Any, Rows], Array]  # nats of every row
    error: Callable[[Any, Rows], Array]  # RMSE or accuracy
    box: tuple[float, float]  # log-variances are kept here
    prior: tuple[float, float]  # and searched here, as the published random search does
    outer_steps: int  # the published number of iterations, `l`
    inner_steps: int  # updates of the weights per iteration, `η`
    period: int  # updates of the weights per hyper-update of drmad, hoag and reverse
    batch: int
    outer_batch: int
    inner_lr: float
    expected: Callable[[MeanField, Rows], Array] | None = None  # the mean log-likelihood of every row in closed form
    offset: Any = 0.0  # added to a log-variance: the weights are trained in units of their own

    @property
    def updates(self) -> int:
        """The budget of one run, in updates of the weights."""
        return self.outer_steps * self.inner_steps


def classify(model: Any, rows: Rows) -> Array:
    """log p(y | x) of every row under softmax."""
    log_probs = jax.nn.log_softmax(jax.vmap(model)(rows.x))
    return jnp.take_along_axis(log_probs, rows.y[:, None], axis=1)[:, 0]


def accuracy(model: Any, rows: Rows) -> Array:
    """The share of right classes."""
    return jnp.mean(jnp.argmax(jax.vmap(model)(rows.x), -1) == rows.y)


def regress(model: Any, rows: Rows) -> Array:
    """log N(y | f(x), 1) of every row without the constant -½ log 2π."""
    return -((jax.vmap(model)(rows.x) - rows.y) ** 2) / 2


def rmse(model: Any, rows: Rows) -> Array:
    """Root of the mean squared error."""
    return jnp.sqrt(-2 * jnp.mean(regress(model, rows)))


def network(inputs: int, outputs: int | Literal["scalar"], hidden: int) -> Callable[[Array], eqx.nn.MLP]:
    """One hidden layer of relu units."""
    return lambda key: eqx.nn.MLP(inputs, outputs, hidden, 1, key=key)


IMAGES: dict[str, Any] = {"log_likelihood": classify, "error": accuracy}
SERIES: dict[str, Any] = {"log_likelihood": regress, "error": rmse}
WIDE: dict[str, Any] = {"box": (-11.0, 5.0), "prior": (-10.0, 4.0)}  # of log-precisions [-5, 11] and [-4, 10]


def setting(name: DataName, data_dir: Path | None, scale: float = 1.0, period: int | None = None) -> Setting:
    """The setting of a data set by its name; `scale` multiplies the updates of the weights."""
    make: Callable[..., Setting] = partial(Setting, period=period or 10)
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
