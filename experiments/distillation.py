"""Ten learned images in place of a training set: `python -m experiments.distillation`.

**Source**: Maclaurin, Duvenaud, Adams (2015), section 3.3.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

import hypergrad as hg

from .common.cells import Advance, grid, rows, run_cells
from .common.classifier import accuracy, cross_entropy
from .common.command import command
from .common.config import NonNegative, OnDigits, Out, Positive, PositiveFloat, Seeds, Some
from .common.data import Rows, Splits, split
from .common.figures import curves, figure
from .common.follow import Steps, follow
from .common.report import save, spread_table

MethodName = Literal["reverse", "drmad", "greedy"]
METHODS: tuple[MethodName, ...] = ("reverse", "drmad", "greedy")
BASELINES = ("random images", "class means", "all images")
CLASSES = 10
QUICK: dict[str, Any] = {"seeds": 1, "num_real": 500}


@dataclass(frozen=True)
class Config(OnDigits):
    """Learn ten images, one per class, such that a few training steps on them alone fit the real images.

    The images follow the hypergradient, through all of training, of the loss on real images. reverse: exact. drmad:
    along the straight line from the first weights to the last. greedy: each training step answers for itself. Baselines
    are trained in the same way on ten real images drawn at random, one per class, on the means of the classes, and on
    all real images.

    Published: one image per class, 20 training steps with learning rate 1 and momentum 0.9 that averages gradients (in
    optax: learning rate 0.1), 40 hyper-steps of size 1, softmax regression, 10,000 real images of MNIST; no accuracy is
    given. Ours: the digits by default, initial weights drawn once per seed, images that start as noise.
    """

    methods: Some[MethodName] = METHODS  # Methods to run; the baselines always run.
    seeds: Seeds = 5
    out: Out = Path("results/distillation")
    hyper_steps: Positive = 40  # Updates of the images.
    hyper_lr: PositiveFloat = 1.0  # Learning rate of gradient descent on the images.
    inner_steps: Positive = 20  # Training steps, from the same initial weights for every hyper-step.
    inner_lr: PositiveFloat = 1.0  # Learning rate of training, with momentum 0.9.
    num_real: Positive = 1000  # Real images behind the outer loss.
    hidden: NonNegative = 0  # Hidden units; 0 is softmax regression.
    noise: PositiveFloat = 0.1  # Standard deviation of the images at the start.


def inner_loss(model, images, labels, key):
    """Returns the cross-entropy on the learned images."""
    return jnp.mean(cross_entropy(model, images, labels))


def outer_loss(model, images, rows, key):
    """Returns the cross-entropy on real images."""
    return jnp.mean(cross_entropy(model, *rows))


def classifier(config: Config, num_inputs: int, key: Array) -> eqx.nn.MLP:
    """Returns softmax regression, or a network with one hidden layer."""
    return eqx.nn.MLP(num_inputs, CLASSES, config.hidden, 1 if config.hidden else 0, key=key)


def make_inner(config: Config) -> hg.AbstractInnerSolver:
    """Returns training by momentum that averages gradients: v <- μ v + (1 - μ) g, w <- w - η v."""
    return hg.OptaxSolver(optax.sgd(config.inner_lr * (1 - 0.9), 0.9), config.inner_steps)


def searches(config: Config, inner: hg.AbstractInnerSolver) -> dict[str, hg.GradientSearch]:
    """Returns all methods by name."""
    estimators: dict[str, hg.AbstractEstimator] = {
        "reverse": hg.Reverse(inner),
        "drmad": hg.DrMAD(inner, check=None),
        "greedy": hg.Greedy(inner, decay=1.0, warm_start=False, check=None),
    }
    optimiser = optax.sgd(config.hyper_lr)
    return {name: hg.GradientSearch(estimator, optimiser) for name, estimator in estimators.items()}


def baselines(real: Rows, seed: int) -> dict[str, Rows]:
    """Returns the training sets to compare with."""
    members = [np.flatnonzero(real.y == label) for label in range(CLASSES)]
    drawn = [np.random.default_rng([seed, 2]).choice(rows) for rows in members]
    means = np.stack([real.x[rows].mean(0) for rows in members])
    labels = np.arange(CLASSES, dtype=np.int32)
    return dict(zip(BASELINES, (real.take(np.array(drawn)), Rows(means, labels), real), strict=True))


def trained_accuracy(inner: hg.AbstractInnerSolver, model: eqx.nn.MLP, images: Any, labels: Any, test: Rows) -> float:
    """Returns the test accuracy in percent of `model` after training on some images."""
    problem = hg.BilevelProblem(inner_loss, outer_loss, train=jnp.asarray(labels), valid=tuple(test))
    end = hg.evaluate(inner, problem, model, jnp.asarray(images), jax.random.key(0))
    return 100 * accuracy(end.params, test)


def distil(config: Config, data: Splits, search: hg.GradientSearch, seed: int, advance: Advance) -> dict[str, Any]:
    """Returns the images that a search learns, its history, and its cost in gradients."""
    model_key, image_key = jax.random.split(jax.random.key(seed))
    model = classifier(config, data.train.x.shape[1], model_key)
    images = config.noise * jax.random.normal(image_key, (CLASSES, data.train.x.shape[1]))
    problem = hg.BilevelProblem(inner_loss, outer_loss, train=jnp.arange(CLASSES), valid=tuple(data.train))
    steps, history = Steps(config.hyper_steps, config.inner_steps, config.hyper_steps), []
    for state, line in follow(search, problem, search.init(problem, model, images), image_key, steps, advance):  # noqa: B007
        history.append(line)
    return {"images": state.hparams, "history": history, "gradients": int(state.spent.gradients)}


def main(config: Config) -> dict[str, Any]:
    """Runs what is missing, writes everything, returns the summary."""
    inner = make_inner(config)
    search = searches(config, inner)

    def run(advance, method, seed):
        data = split(config.data, config.data_dir, seed, config.num_real, 1)
        baseline = baselines(data.train, seed).get(method)
        found = {} if baseline else distil(config, data, search[method], seed, advance)
        images, labels = baseline or Rows(found["images"], np.arange(CLASSES, dtype=np.int32))
        keys = {"test": jax.random.split(jax.random.key(seed))[0], "fresh": jax.random.key(1000 + seed)}
        models = {name: classifier(config, data.train.x.shape[1], key) for name, key in keys.items()}
        accuracies = {
            f"{name}_accuracy": trained_accuracy(inner, model, images, labels, data.test)
            for name, model in models.items()
        }
        row = {"images": len(images), **accuracies, "gradients": found.get("gradients")}
        shown = images if seed == config.first_seed and len(images) == CLASSES else None
        return {"runs": [row], "history": found.get("history", []), "images": shown}

    cells = run_cells(config, grid(method=(*BASELINES, *config.methods), seed=config.seed_range()), run)
    runs, history = rows(cells, "runs"), rows(cells, "history")
    table = spread_table(runs, ("method", "images"), ("test_accuracy", "fresh_accuracy", "gradients"))
    draw(config.out, history, {cell["runs"][0]["method"]: np.array(cell["images"]) for cell in cells if cell["images"]})
    heading = (
        f"{config.data}, {config.seeds} seeds, mean ± standard deviation; accuracies in percent.\n"
        "fresh: training from other initial weights than those the images were learned with. Published: no accuracy."
    )
    return save(config, runs, table, history, heading)


def draw(out: Path, history: list[dict[str, Any]], images: dict[str, np.ndarray]) -> None:
    """Draws the loss against hyper-steps, and the images of the first seed."""
    with figure(out / "loss.png", size=(6, 4)) as axes:
        curves(axes, history, "hyper_steps", "outer_loss", "method")
        axes.set(xlabel="hyper-steps", ylabel="loss on real images")
        axes.legend()
    side = round(len(next(iter(images.values()))[0]) ** 0.5)
    size = (10, 1.15 * len(images))
    with figure(out / "images.png", len(images), CLASSES, size) as grid:
        for row, (name, pictures) in zip(grid, images.items(), strict=True):
            limit = float(np.abs(pictures).max())
            for axis, picture, label in zip(row, pictures, range(CLASSES), strict=True):
                axis.imshow(picture.reshape(side, side), cmap="RdBu_r", vmin=-limit, vmax=limit)
                axis.set(xticks=[], yticks=[])
                if row is grid[0]:
                    axis.set_title(str(label), fontsize=9)
            row[0].set_ylabel(name, fontsize=8)
        grid[0, 0].figure.suptitle(
            "difference from the mean image: red is ink, blue its absence; each row on its own scale", fontsize=9
        )


if __name__ == "__main__":
    command(main, Config(), "distillation", quick=QUICK)
