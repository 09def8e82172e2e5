"""Images and text: configuration, loop over seeds and methods, report."""

import threading
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import equinox as eqx
import jax
import numpy as np
from sklearn.metrics import roc_auc_score

from ..common.cells import grid, run_cells
from ..common.command import num_cores, quickly_compiled, share_cores
from ..common.config import Fraction, NonNegative, Out, Positive, PositiveFloat, Rule, WithData
from ..common.data import Rows, image_sets
from . import text
from .images import CLASSES, draw
from .methods import METHODS, Result, Task
from .model import measure, values_of, weights_of
from .network import ResNet
from .report import report

COMMON = ("plain", "tpe, 10 % trials", "tpe, 25 % trials", "online", "tune")
USUAL: dict[str, tuple[str, ...]] = {
    "labels": ("oracle", "plain", "tpe, 25 % trials", "example weights", "weights by loss"),
    "clean": COMMON,
    "text": COMMON,
}
CHOICES = USUAL | {"labels": (*USUAL["labels"], "validation rows", "weights and all", "by loss and all")}
Name = Annotated[str, Rule(lambda name: name in METHODS, f"must be among {', '.join(METHODS)}")]
QUICK: dict[str, Any] = {
    "methods": ("oracle", "plain", "example weights"),
    "seeds": 1,
    "rows": 128,
    "valid": 64,
    "blocks": 1,
    "channels": 4,
    "epochs": 6,
    "batch": 32,
}
TEST_LINES = 2000
FULL: dict[str, Any] = {"rows": 50_000, "valid": 5_000, "side": 28, "channels": 32, "blocks": 3, "batch": 128}


class Drawn(NamedTuple):
    """Rows of one seed, the indices of training rows that are right, and measures that do not depend on a method."""

    train: Any
    valid: Any
    test: Any
    right: np.ndarray
    more: dict[str, float]


@dataclass(frozen=True)
class Config(WithData):
    """Learn hyperparameters of a residual network on images, or of a transformer on text, while it trains.

    labels: a share `noise` of the training images has the label of another class; the validation images are right.
    clean: no wrong labels. text: letters of a Markov chain, whose entropy bounds what can be reached.

    Learned: a decay for each weight matrix, rate and momentum, label smoothing, the strengths of random shifts and
    zooms, and a weight for each example. plain trains at the defaults. oracle does so without the wrong labels, and
    validation rows on those rows alone. tpe trains a trial per 10 or 25 % of the budget, the first at the defaults.
    online moves the few hyperparameters every 25 updates along the last five, at averaged weights. tune is
    `hypergrad.tune`. example weights spends 60 % of its budget on one weight per example, moved every epoch along all
    updates of it, and trains anew with these; weights and all moves the rest too. weights by loss learns, as online
    does but along the last two, from which loss on an example counts less, and how sharply; by loss and all moves the
    rest too, along five. All read the training rows equally often and keep their best model on the validation rows;
    where hyperparameters are learned by derivatives, half of these choose, but for the training anew. Test rows are
    measured once, at the end.
    """

    task: Literal["labels", "clean", "text"] = "labels"
    """What is learned from."""
    methods: tuple[Name, ...] = ()  # Methods; by default those that suit the task, on wrong labels five of the eight.
    every: bool = False  # All methods that suit the task.
    data: Literal["mnist", "fashion"] = "mnist"
    """Images. fashion: Fashion-MNIST's four IDX files, from --data-dir or its folder fashion-mnist."""
    out: Out = Path("results/vision")
    full: bool = False
    """50,000 images of 28 x 28 pixels and a larger network, for a GPU."""
    rows: Positive = 2000  # Training images, or lines of text.
    valid: Positive = 1000  # Validation images, or lines.
    side: Positive = 14  # Pixels along an image.
    noise: Fraction = 0.4  # Share of wrong labels.
    channels: Positive = 8  # Channels of the first convolution; a quarter of the transformer's width.
    blocks: NonNegative = 2  # Residual blocks, or layers of the transformer.
    letters: Positive = 4  # Letters of the alphabet.
    length: Positive = 16  # Letters of a line.
    epochs: PositiveFloat = 40.0  # How often the training rows are read.
    batch: Positive = 64  # Rows of an update.
    jobs: NonNegative = 0  # Runs at the same time. 0: one per core.

    def __post_init__(self):
        super().__post_init__()
        if self.quick and self.full:
            raise ValueError("quick and full exclude each other")
        if self.every and self.methods:
            raise ValueError("every and methods exclude each other")
        if unfit := [name for name in self.methods if name not in CHOICES[self.task]]:
            raise ValueError(f"methods {', '.join(unfit)} do not suit the task {self.task}")
        if self.batch > self.rows:
            raise ValueError(f"batch must be at most the {self.rows} rows, got {self.batch}")

    @property
    def threads(self) -> int:
        """The number of runs at the same time."""
        return self.jobs or num_cores()

    @property
    def chosen(self) -> tuple[str, ...]:
        """The methods that run."""
        return self.methods or (CHOICES if self.every else USUAL)[self.task]


def start(config: Config) -> dict[str, Any]:
    """Divides the cores among the runs, then does what `main` does."""
    share_cores(config.threads)
    return main(config)


def main(config: Config) -> dict[str, Any]:
    """Runs what is missing, writes everything, returns the summary."""
    images = cache(lambda: image_sets(config.data, config.data_dir))  # read once, unless all cells are stored
    alone = threading.Lock()

    def run(advance, method, seed):
        with alone:
            drawn = lines(config, seed) if config.task == "text" else pictures(config, images(), seed)
        model_key, run_key = jax.random.split(jax.random.key(seed))
        model = network(config, model_key)
        task = Task(kind(config), model, *drawn[:2], drawn.right, config.epochs, config.batch, run_key)
        begun = time.monotonic()
        found = METHODS[method](task)
        seconds = time.monotonic() - begun
        return {"history": task.history} | judged(found, drawn, {"seconds": seconds})

    cells = grid(method=config.chosen, seed=config.seed_range())
    with quickly_compiled(config.quick):
        return report(config, run_cells(config, cells, run, "runs", jobs=config.threads))


def judged(found: Result, drawn: Drawn, more: dict[str, float]) -> dict[str, Any]:
    """Returns the row of a run, for which the test rows are read, and the weights of examples where they have any."""
    row = {f"test_{name}": value for name, value in measure(found.params, drawn.test).items()}
    row |= {"valid_loss": found.value, "epochs": found.rows / len(drawn.train.y), "updates": found.updates}
    row |= more | drawn.more | values_of(found.hparams)
    if (weights := weights_of(found.params, found.hparams, drawn.train)) is None:
        return {"runs": [row]}
    wrong = ~np.isin(drawn.train.row, drawn.right)
    return {"runs": [row | {"auc": float(roc_auc_score(wrong, -weights))}], "weights": weights, "wrong": wrong}


def kind(config: Config) -> Literal["images", "text"]:
    """Returns which of the two networks is trained."""
    return "text" if config.task == "text" else "images"


def network(config: Config, key: jax.Array) -> Any:
    """Returns a network and its running averages."""
    if config.task == "text":
        width = 4 * config.channels
        return eqx.nn.make_with_state(text.Transformer)(config.letters, config.length, width, config.blocks, key)
    return eqx.nn.make_with_state(ResNet)(config.channels, config.blocks, CLASSES, key)


def lines(config: Config, seed: int) -> Drawn:
    """Returns text, all of which is right, with the entropy of its source and the test losses of two yardsticks."""
    random = np.random.default_rng(seed)
    source = text.Source.draw(config.letters, random)
    train, valid, test = (source.write(n, config.length, random) for n in (config.rows, config.valid, TEST_LINES))
    more = {"entropy": source.entropy, "source": source.cross_entropy(test), "counts": text.by_counts(train, test)}
    return Drawn(train, valid, test, np.arange(config.rows), more)


def pictures(config: Config, images: tuple[Rows, Rows], seed: int) -> Drawn:
    """Returns images, of which some have wrong labels if the task says so."""
    noise = config.noise if config.task == "labels" else 0.0
    found = draw(images, seed, (config.rows, config.valid, config.side), noise)
    return Drawn(found.train, found.valid, found.test, np.flatnonzero(~found.wrong), {})
