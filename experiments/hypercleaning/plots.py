"""Plots of hyper-cleaning."""

import numpy as np

from ..common.figures import COLOURS, curves, figure


def draw(config, history: list[dict], learned: dict) -> None:
    """Accuracy against hyper-steps, and the weights of right and wrong labels."""
    count = len(config.noises)
    with figure(config.out / "accuracy.png", 1, count, (1 + 4.5 * count, 4), squeeze=False) as axes:
        for axis, noise in zip(axes[0], config.noises, strict=True):
            curves(
                axis, [line for line in history if line["noise"] == noise], "hyper_steps", "valid_accuracy", "method"
            )
            axis.set(xlabel="hyper-steps", ylabel="validation accuracy, %", title=f"{noise:.0%} of labels wrong")
        axes[0, 0].legend(fontsize=8, ncols=2)
    names = [name for name in config.methods if name != "none"]
    if names:
        histograms(config, names, learned)


def histograms(config, names, learned: dict) -> None:
    """Learned weights of the first seed."""
    rows, columns = len(config.noises), len(names)
    bins = np.linspace(0, 1, 31)
    size = (2.6 * columns + 0.6, 2.4 * rows + 0.4)
    with figure(config.out / "weights.png", rows, columns, size, squeeze=False) as axes:
        for axis, (noise, name) in zip(np.ravel(axes), [(n, m) for n in config.noises for m in names], strict=True):
            weights, wrong = learned[name, noise]
            parts = (weights[~wrong], weights[wrong])
            axis.hist(parts, bins, histtype="stepfilled", alpha=0.6, color=COLOURS[:2], label=("right", "wrong"))
            axis.set(yscale="log", xlabel="weight", ylabel="images")
            axis.set_title(f"{name}, noise {noise:g}", fontsize=9)
        axes[0, 0].legend(title="label", fontsize=8)
