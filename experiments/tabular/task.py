"""One start on one split, and what a method measures there."""

from dataclasses import dataclass, field
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

import hypergrad as hg

from .data import Table
from .model import Decays, Losses, hparams_of, log_decay_of, on_test


@dataclass
class Task:
    """One start on one split, and the course of the method that runs there."""

    table: Table
    losses: Losses
    model: eqx.nn.MLP
    start: dict[str, float]
    budget: int
    batch: int
    key: Array
    history: list[dict[str, float]] = field(default_factory=list)

    def problem(self, valid: Any = None) -> hg.BilevelProblem:
        """Returns the problem; `valid` stands in for the validation rows."""
        rows = self.table.splits
        return hg.BilevelProblem(*self.losses, rows.train, rows.valid if valid is None else valid)

    def hparams(self, decays: Decays = "layer") -> PyTree:
        """Returns the start."""
        return hparams_of(self.model, self.start, decays)

    def record(self, params: eqx.nn.MLP, gradients: int) -> None:
        """Measures the best model after so many gradient equivalents, for the plot alone."""
        self.history.append({"gradients": gradients} | on_test(params, self.table))

    def valid_loss(self, params: eqx.nn.MLP) -> float:
        """Returns the outer loss of a model."""
        return float(self.losses.outer(params, self.hparams(), self.table.splits.valid, self.key))

    def summary(self, hparams: PyTree) -> dict[str, Any]:
        """Returns the mean log-decay of each layer, the rate and b1."""
        decays = [float(jnp.mean(log_decay_of(decay))) for decay in hparams["log_decay"]]
        rate, b1 = jnp.exp(hparams["log_rate"]), jax.nn.sigmoid(hparams["logit_b1"])
        return {"log_decay": decays, "rate": float(rate), "b1": float(b1)}
