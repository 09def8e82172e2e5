"""Hyper-cleaning: configuration, loop over noise, methods and seeds, report."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.metrics import f1_score, roc_auc_score

import hypergrad as hg

from ..common.cells import grid, rows, run_cells
from ..common.classifier import accuracy
from ..common.config import Fraction, Out, Positive, PositiveFloat, Some, WithData
from ..common.data import Rows, image_sets
from ..common.figures import COLOURS, curves, figure
from ..common.follow import Steps, follow
from ..common.report import Row, grouped, save, spread_table
from .methods import METHODS, MethodName, searches
from .model import ConvNet, Noisy, corrupt, make_losses

CERTAIN = 30.0  # sigmoid(30) is 1 in single precision
MEASUREMENTS = 10  # measurements of the accuracy per run
SOURCE = "Generalized Greedy, ICLR 2025 submission 6297"
PUBLISHED = {  # test accuracy in percent, by data set, method and noise
    "mnist": {
        "none": {0.3: 70.46, 0.5: 51.52},
        "t1t2": {0.3: 66.93, 0.5: 51.86},
        "ift5": {0.3: 71.97, 0.5: 54.14},
        "gg": {0.3: 87.06, 0.5: 77.73},
    },
    "fashion": {
        "none": {0.3: 59.46, 0.5: 53.99},
        "t1t2": {0.3: 62.07, 0.5: 51.40},
        "ift5": {0.3: 60.63, 0.5: 47.68},
        "gg": {0.3: 72.57, 0.5: 66.21},
    },
}
QUICK: dict[str, Any] = {"noises": (0.5,), "hyper_steps": 40, "seeds": 1, "outer_batch": 100}


@dataclass(frozen=True)
class Config(WithData):
    """Learn one weight per training image, so that images with wrong labels are ignored.

    1,000 images, of which a fraction has the label of another class, train a small convolutional network; the weight
    sigmoid(λ_i) of each image follows the hypergradient of the loss on clean validation images. none: all weights 1.
    t1t2: the last training step alone. ift5: implicit, five Neumann terms. gg: greedy with decay 0.9. reverse: exact
    through the last ten training steps. drmad: along the straight line between their ends. t1t2_sum and ift5_sum: the
    same hypergradient for every image, the sum over all.

    Published: 1,000 images, noise 0.3 and 0.5, a CNN of three layers with 8 channels, SGD 0.1 with momentum 0.9, ten
    training steps per hyper-step, Adam 0.1 on λ, 200 hyper-steps, the test set as validation set (ICLR 2025 submission
    6297). Not known to us: batch sizes, the rest of the architecture, how labels are corrupted, whether momentum
    averages gradients or adds them, whether training goes on from hyper-step to hyper-step. Ours: batches of 32,
    training that goes on, stride 2 and no pooling, a validation batch per hyper-step; and the learning rate with which
    training without cleaning ends near the published accuracies, 0.0125 as optax counts (0.125 on averaged
    gradients).
    """

    protocol: Literal["published", "split"] = "published"
    """published: the test set is the validation set. split: 10,000 clean validation images from the training pool; the
    test set is used once, at the end."""
    data: Literal["mnist", "fashion"] = "mnist"
    """fashion: Fashion-MNIST's four IDX files, from --data-dir or its folder fashion-mnist."""
    methods: Some[MethodName] = METHODS  # Methods to run.
    noises: Some[Fraction] = (0.3, 0.5)  # Fractions of wrong labels.
    out: Out = Path("results/hypercleaning")
    hyper_steps: Positive = 200  # Updates of λ.
    inner_steps: Positive = 10  # Training steps per hyper-step.
    inner_lr: PositiveFloat = 0.0125  # Learning rate of SGD with momentum 0.9 as optax counts it.
    hyper_lr: PositiveFloat = 0.1  # Learning rate of Adam on λ.
    num_train: Positive = 1000  # Training images.
    num_valid: Positive = 10_000  # Validation images of the protocol split.
    batch: Positive = 32  # Images per training step.
    outer_batch: Positive = 250  # Validation images per hyper-step.
    channels: Positive = 8  # Channels of the convolutions.

    def __post_init__(self):
        super().__post_init__()
        if self.num_train + self.num_valid > 60_000:
            raise ValueError(f"num_train + num_valid is {self.num_train + self.num_valid}, above 60,000")


class Sample(NamedTuple):
    """The images of one noise level and seed, and a mask of the wrong labels."""

    train: Noisy
    wrong: np.ndarray
    valid: Rows
    test: Rows


def draw_images(config: Config, images: tuple[Rows, Rows], noise: float, seed: int) -> Sample:
    """Draws and corrupts the training images."""
    pool, test = images
    order = np.random.default_rng(seed).permutation(len(pool.y))
    train, wrong = corrupt(pool.take(order[: config.num_train]), noise, seed)
    held_out = pool.take(order[config.num_train : config.num_train + config.num_valid])
    return Sample(train, wrong, test if config.protocol == "published" else held_out, test)


def main(config: Config) -> dict[str, Any]:
    """Runs what is missing, writes everything, returns the summary."""
    losses = make_losses(config.batch, config.outer_batch)
    search = searches(config.inner_lr, config.inner_steps, config.hyper_lr)
    steps = Steps(config.hyper_steps, config.inner_steps, MEASUREMENTS)

    def run(advance, method, noise, seed):
        sample = draw_images(config, image_sets(config.data, config.data_dir), noise, seed)
        init_key, run_key = jax.random.split(jax.random.key(seed))
        problem = hg.BilevelProblem(*losses, train=sample.train, valid=sample.valid)
        hparams = jnp.full(len(sample.wrong), CERTAIN if method == "none" else 0.0)
        start, history = search[method].init(problem, ConvNet(config.channels, init_key), hparams), []
        for state, line in follow(search[method], problem, start, run_key, steps, advance):
            history.append(line | {"valid_accuracy": 100 * accuracy(state.model, sample.valid)})
        weights = np.asarray(jax.nn.sigmoid(state.hparams))
        row = {
            "test_accuracy": 100 * accuracy(state.model, sample.test),
            "auc": float(roc_auc_score(sample.wrong, -weights)),
            "f1": float(f1_score(sample.wrong, weights < 0.5)),
            "gradients": int(state.spent.gradients),
            "iterations": int(state.spent.iterations),
            "seconds": history[-1]["seconds"],
        }
        return {"runs": [row], "history": history, "weights": weights, "wrong": sample.wrong}

    return report(
        config, run_cells(config, grid(method=config.methods, noise=config.noises, seed=config.seed_range()), run)
    )


def report(config: Config, cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Writes summary.json, history.csv, table.md and the plots, and returns the summary."""
    runs, history = rows(cells, "runs"), rows(cells, "history")
    table = spread_table(runs, ("noise", "method"), ("test_accuracy", "auc", "f1", "gradients", "seconds"))
    table = [beside_published(config.data, line) for line in sorted(table, key=lambda line: line["noise"])]
    first = [cell for cell in cells if cell["runs"][0]["seed"] == config.first_seed]
    draw(config.out, history, first)
    heading = (
        f"{config.data}, protocol {config.protocol}, {config.seeds} seeds, mean ± standard deviation; accuracies in "
        f"percent. Published: {SOURCE}.\nauc and f1: wrong labels found by small weights."
    )
    return save(config, runs, table, history, heading)


def beside_published(data: str, line: dict[str, Any]) -> dict[str, Any]:
    """Returns the line of the table with the published accuracy next to ours."""
    published = PUBLISHED[data].get(line["method"].removesuffix("_sum"), {}).get(line["noise"], "-")
    head = {name: line[name] for name in ("noise", "method", "test_accuracy")}
    return head | {"published": published} | line


def draw(out: Path, history: list[Row], cells: list[dict[str, Any]]) -> None:
    """Draws the accuracy against hyper-steps, and the weights of right and wrong labels in some cells."""
    panels = grouped(history, ("noise",))
    with figure(out / "accuracy.png", 1, len(panels), (1 + 4.5 * len(panels), 4), squeeze=False) as axes:
        for axis, lines in zip(axes[0], panels, strict=True):
            curves(axis, lines, "hyper_steps", "valid_accuracy", "method")
            title = f"{lines[0]['noise']:.0%} of labels wrong"
            axis.set(xlabel="hyper-steps", ylabel="validation accuracy, %", title=title)
        axes[0, 0].legend(fontsize=8, ncols=2)
    learned = [cell for cell in cells if cell["runs"][0]["method"] != "none"]
    if learned:
        histograms(out / "weights.png", learned, len(panels))


def histograms(path: Path, cells: list[dict[str, Any]], rows: int) -> None:
    """Draws the learned weights of every method and noise."""
    columns, bins = len(cells) // rows, np.linspace(0, 1, 31)
    size = (2.6 * columns + 0.6, 2.4 * rows + 0.4)
    with figure(path, rows, columns, size, squeeze=False) as axes:
        for axis, cell in zip(axes.T.flat, cells, strict=True):
            weights, wrong, row = np.array(cell["weights"]), np.array(cell["wrong"]), cell["runs"][0]
            parts = (weights[~wrong], weights[wrong])
            axis.hist(parts, bins, histtype="stepfilled", alpha=0.6, color=COLOURS[:2], label=("right", "wrong"))
            axis.set(yscale="log", xlabel="weight", ylabel="images")
            axis.set_title(f"{row['method']}, noise {row['noise']:g}", fontsize=9)
        axes[0, 0].legend(title="label", fontsize=8)
