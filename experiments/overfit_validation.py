"""Overfitting a validation set with one weight decay per weight: `python -m experiments.overfit_validation`.

That a validation set of 50 examples can be fitted through the hyperparameters alone shows that the hypergradients are
strong enough to steer training, and that as many hyperparameters as weights must not be chosen on 50 examples.

**Source**: Lorraine, Vicol, Duvenaud (2020), section 5.1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from tqdm.auto import tqdm

import hypergrad as hg

from .common.classifier import accuracy, cross_entropy
from .common.command import command
from .common.config import NonNegativeFloat, OnSplits, Out, Positive, PositiveFloat, Some
from .common.data import Splits, split
from .common.figures import curves, figure
from .common.follow import follow
from .common.report import save, spread_table

MethodName = Literal["neumann1", "neumann5", "neumann20", "cg20", "reverse"]
METHODS: tuple[MethodName, ...] = ("neumann1", "neumann5", "neumann20", "cg20", "reverse")
BOX = (-12.0, 2.0)  # above, a step of the inner optimiser would be unstable
PARTS = ("train", "valid", "test")
LOOKS = 40
QUICK: dict[str, Any] = {"hyper_steps": 100, "seeds": 1}


@dataclass(frozen=True)
class Config(OnSplits):
    """Drive the accuracy on 50 validation images to 100 % by learning one weight decay per weight.

    A network with one hidden layer is trained on as few images, with penalty exp(h_i) w_i² / 2 on each weight; h
    follows the hypergradient of the validation loss. neumann1, neumann5, neumann20, cg20: implicit, with so many terms
    of a Neumann series or steps of conjugate gradients. reverse: exact through the training since the last hyper-step.

    The accuracy on test images is plotted along, since the gap between the two is what is shown; nothing is chosen by
    it. Published is the experiment, 50 validation images and that the accuracy on them reaches 100 %; sizes, learning
    rates and the number of training images are ours.
    """

    methods: Some[MethodName] = METHODS
    """Which methods to run."""
    out: Out = Path("results/overfit_validation")
    hyper_steps: Positive = 400
    """Updates of the weight decays."""
    inner_steps: Positive = 20
    """Training steps per hyper-step; training goes on from hyper-step to hyper-step."""
    num_train: Positive = 50
    """Training images."""
    num_valid: Positive = 50
    """Validation images."""
    hidden: Positive = 32
    """Hidden units."""
    inner_lr: PositiveFloat = 0.1
    """Learning rate of SGD with momentum 0.9 on the weights."""
    hyper_lr: PositiveFloat = 0.1
    """Learning rate of Adam on the log-penalties."""
    start: float = -5.0
    """Log-penalty of every weight at the start."""
    damping: NonNegativeFloat = 0.01
    """Added to the Hessian by the implicit methods."""

    def __post_init__(self):
        super().__post_init__()
        if not BOX[0] <= self.start <= BOX[1]:
            raise ValueError(f"start must be between {BOX[0]} and {BOX[1]}, got {self.start}")


def inner_loss(model, hparams, rows, key):
    """Cross-entropy and one penalty per weight."""
    weights = eqx.filter(model, eqx.is_inexact_array)
    decay = jax.tree.map(lambda w, h: jnp.sum(jnp.exp(h) * w**2) / 2, weights, hparams)
    return outer_loss(model, hparams, rows, key) + sum(jax.tree.leaves(decay))


def outer_loss(model, hparams, rows, key):
    """Cross-entropy."""
    return jnp.mean(cross_entropy(model, *rows))


def in_box(hparams):
    """Log-penalties between the bounds."""
    return optax.tree.clip(hparams, *BOX)


def searches(config: Config) -> dict[str, hg.GradientSearch]:
    """All methods by name."""
    inner = hg.OptaxSolver(optax.sgd(config.inner_lr, 0.9), config.inner_steps)
    series = {f"neumann{terms}": hg.Neumann(terms, damping=config.damping) for terms in (1, 5, 20)}
    solvers: dict[str, hg.AbstractLinearSolver] = {**series, "cg20": hg.CG(20, damping=config.damping)}
    estimators: dict[str, hg.AbstractEstimator] = {
        name: hg.Implicit(inner, solver, warm_start=True) for name, solver in solvers.items()
    }
    estimators["reverse"] = hg.Reverse(inner, warm_start=True)
    optimiser = optax.adam(config.hyper_lr)
    return {name: hg.GradientSearch(estimator, optimiser, projection=in_box) for name, estimator in estimators.items()}


def run_cell(config: Config, data: Splits, name: str, search, seed: int, advance: Callable) -> tuple[dict, list]:
    """One method on one seed: its summary and its history."""
    init_key, run_key = jax.random.split(jax.random.key(seed))
    model = eqx.nn.MLP(data.train.x.shape[1], 10, config.hidden, 1, key=init_key)
    hparams = jax.tree.map(lambda w: jnp.full_like(w, config.start), eqx.filter(model, eqx.is_inexact_array))
    problem = hg.BilevelProblem(inner_loss, outer_loss, train=tuple(data.train), valid=tuple(data.valid))
    state = search.init(problem, model, hparams)
    labels = {"method": name, "seed": seed}
    state, history = follow(
        search,
        problem,
        state,
        key=run_key,
        steps=config.hyper_steps,
        inner_steps=config.inner_steps,
        looks=LOOKS,
        measure=lambda state: {part: 100 * accuracy(state.model, getattr(data, part)) for part in PARTS},
        advance=advance,
    )
    history = [labels | line for line in history]
    first = {f"{part}_first": history[0][part] for part in PARTS}
    row = history[-1] | first | {"gradients": int(state.spent.gradients), "num_hparams": optax.tree.size(hparams)}
    return row, history


def main(config: Config) -> dict[str, Any]:
    """Run everything, write everything, return the summary."""
    search = searches(config)
    runs, history = [], []
    with tqdm(total=len(config.methods) * config.seeds * config.hyper_steps, unit=" hyper-steps") as bar:
        for name in config.methods:
            for seed in range(config.seeds):
                bar.set_postfix_str(f"{name}, seed {seed}")
                data = split(config.data, config.data_dir, seed, config.num_train, config.num_valid)
                row, lines = run_cell(config, data, name, search[name], seed, bar.update)
                runs.append(row)
                history += lines
    columns = ("valid_first", "test_first", *PARTS, "outer_loss", "gradients", "seconds")
    table = [line | {"published valid": "~100"} for line in spread_table(runs, ("method",), columns)]
    draw(config, history)
    heading = (
        f"{config.data}, {runs[0]['num_hparams']} weight decays, {config.num_valid} validation images, {config.seeds} "
        "seeds, mean ± standard deviation; accuracies in percent.\n_first: at the first measurement. Published: "
        "Lorraine et al. (2020), section 5.1."
    )
    return save(config, runs, table, history, heading)


def draw(config: Config, history: list[dict]) -> None:
    """Accuracy on the three sets against hyper-steps."""
    with figure(config.out / "accuracy.png", 1, 3, (12, 3.8), sharey=True) as axes:
        for axis, part in zip(axes, PARTS, strict=True):
            curves(axis, history, "hyper_steps", part, "method")
            axis.set(xlabel="hyper-steps", title=f"{part} set")
        axes[0].set_ylabel("accuracy, %")
        axes[0].legend(fontsize=8, loc="lower right")


if __name__ == "__main__":
    command(main, Config(), "overfit_validation", quick=QUICK)
