"""Overfitting a validation set with one weight decay per weight: `python -m experiments.overfit_validation`.

A validation set of 50 examples can be fitted through the hyperparameters alone. So hypergradients are strong enough to
steer training, and as many hyperparameters as weights must not be chosen on 50 examples.

**Source**: Lorraine, Vicol, Duvenaud (2020), section 5.1.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import hypergrad as hg

from .common.cells import grid, rows, run_cells
from .common.classifier import accuracy, cross_entropy
from .common.command import command
from .common.config import NonNegativeFloat, OnSplits, Out, Positive, PositiveFloat, Some, Train, Valid
from .common.figures import curves, figure
from .common.follow import Steps, follow
from .common.report import save, spread_table

MethodName = Literal["neumann1", "neumann5", "neumann20", "cg20", "reverse"]
METHODS: tuple[MethodName, ...] = ("neumann1", "neumann5", "neumann20", "cg20", "reverse")
BOX = (-12.0, 2.0)  # above, a step of the inner optimiser would be unstable
PARTS = ("train", "valid", "test")
MEASUREMENTS = 40
QUICK: dict[str, Any] = {"hyper_steps": 100, "seeds": 1}


@dataclass(frozen=True)
class Config(OnSplits):
    """Drive the accuracy on 50 validation images to 100 % by learning one weight decay per weight.

    A network with one hidden layer is trained on as few images, with penalty exp(h_i) w_i² / 2 on each weight; h
    follows the hypergradient of the validation loss. neumann1, neumann5, neumann20, cg20: implicit, with so many terms
    of a Neumann series or steps of conjugate gradients. reverse: exact through the training since the last hyper-step.

    The gap to the accuracy on test images is the result; nothing is chosen by the test images. Published: the
    experiment, 50 validation images, and that the accuracy on them reaches 100 %. Ours: sizes, learning rates and the
    number of training images.
    """

    methods: Some[MethodName] = METHODS  # Methods to run.
    out: Out = Path("results/overfit_validation")
    hyper_steps: Positive = 400  # Updates of the weight decays.
    inner_steps: Positive = 20  # Training steps per hyper-step; training goes on from hyper-step to hyper-step.
    num_train: Train = 50
    num_valid: Valid = 50
    hidden: Positive = 32  # Hidden units.
    inner_lr: PositiveFloat = 0.1  # Learning rate of SGD with momentum 0.9 on the weights.
    hyper_lr: PositiveFloat = 0.1  # Learning rate of Adam on the log-penalties.
    start: float = -5.0  # Log-penalty of every weight at the start.
    damping: NonNegativeFloat = 0.01  # Added to the Hessian by the implicit methods.

    def __post_init__(self):
        super().__post_init__()
        if not BOX[0] <= self.start <= BOX[1]:
            raise ValueError(f"start must be between {BOX[0]} and {BOX[1]}, got {self.start}")


def inner_loss(model, hparams, rows, key):
    """Returns cross-entropy and one penalty per weight."""
    weights = eqx.filter(model, eqx.is_inexact_array)
    decay = jax.tree.map(lambda w, h: jnp.sum(jnp.exp(h) * w**2) / 2, weights, hparams)
    return outer_loss(model, hparams, rows, key) + sum(jax.tree.leaves(decay))


def outer_loss(model, hparams, rows, key):
    """Returns the cross-entropy."""
    return jnp.mean(cross_entropy(model, *rows))


def in_box(hparams):
    """Returns log-penalties clipped to the bounds."""
    return optax.tree.clip(hparams, *BOX)


def searches(config: Config) -> dict[str, hg.GradientSearch]:
    """Returns all methods by name."""
    inner = hg.OptaxSolver(optax.sgd(config.inner_lr, 0.9), config.inner_steps)
    series = {f"neumann{terms}": hg.Neumann(terms, damping=config.damping) for terms in (1, 5, 20)}
    solvers: dict[str, hg.linear.AbstractLinearSolver] = {**series, "cg20": hg.CG(20, damping=config.damping)}
    estimators: dict[str, hg.AbstractEstimator] = {
        name: hg.Implicit(inner, solver, warm_start=True) for name, solver in solvers.items()
    }
    estimators["reverse"] = hg.Reverse(inner, warm_start=True)
    optimiser = optax.adam(config.hyper_lr)
    return {name: hg.GradientSearch(estimator, optimiser, projection=in_box) for name, estimator in estimators.items()}


def main(config: Config) -> dict[str, Any]:
    """Runs what is missing, writes everything, returns the summary."""
    search, steps = searches(config), Steps(config.hyper_steps, config.inner_steps, MEASUREMENTS)

    def run(advance, method, seed):
        data = config.splits(seed)
        init_key, run_key = jax.random.split(jax.random.key(seed))
        model = eqx.nn.MLP(data.train.x.shape[1], 10, config.hidden, 1, key=init_key)
        hparams = jax.tree.map(lambda w: jnp.full_like(w, config.start), eqx.filter(model, eqx.is_inexact_array))
        problem = hg.BilevelProblem(inner_loss, outer_loss, train=tuple(data.train), valid=tuple(data.valid))
        start, history = search[method].init(problem, model, hparams), []
        for state, line in follow(search[method], problem, start, run_key, steps, advance):
            history.append(line | {part: 100 * accuracy(state.model, getattr(data, part)) for part in PARTS})
        first = {f"{part}_first": history[0][part] for part in PARTS}
        spent = {"gradients": int(state.spent.gradients), "num_hparams": optax.tree.size(hparams)}
        return {"runs": [history[-1] | first | spent], "history": history}

    cells = run_cells(config, grid(method=config.methods, seed=config.seed_range()), run)
    runs, history = rows(cells, "runs"), rows(cells, "history")
    columns = ("valid_first", "test_first", *PARTS, "outer_loss", "gradients", "seconds")
    table = [line | {"published valid": "~100"} for line in spread_table(runs, ("method",), columns)]
    draw(config.out, history)
    heading = (
        f"{config.data}, {runs[0]['num_hparams']} weight decays, {config.num_valid} validation images, {config.seeds} "
        "seeds, mean ± standard deviation; accuracies in percent.\n_first: at the first measurement. Published: "
        "Lorraine et al. (2020), section 5.1."
    )
    return save(config, runs, table, history, heading)


def draw(out: Path, history: list[dict[str, Any]]) -> None:
    """Draws the accuracy on the three sets against hyper-steps."""
    with figure(out / "accuracy.png", 1, 3, (12, 3.8), sharey=True) as axes:
        for axis, part in zip(axes, PARTS, strict=True):
            curves(axis, history, "hyper_steps", part, "method")
            axis.set(xlabel="hyper-steps", title=f"{part} set")
        axes[0].set_ylabel("accuracy, %")
        axes[0].legend(fontsize=8, loc="lower right")


if __name__ == "__main__":
    command(main, Config(), "overfit_validation", quick=QUICK)
