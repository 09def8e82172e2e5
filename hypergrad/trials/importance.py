"""How much each block (subnetwork) matters, from what a search was told."""

import abc
from collections.abc import Mapping

import equinox as eqx
import numpy as np

from .trial import SearcherState


class AbstractImportance(eqx.Module):
    """Weights of the blocks, not negative; all zero where nothing can be said yet."""

    @abc.abstractmethod
    def __call__(self, state: SearcherState) -> dict[str, float]:
        """The weight of every block."""


def by_block(state: SearcherState, weights: Mapping[str, float]) -> dict[str, float]:
    """Sums of the weights of leaves over blocks."""
    return {block: float(sum(weights[name] for name in names)) for block, names in state.space.blocks.items()}


def _table(state: SearcherState) -> tuple[np.ndarray, np.ndarray]:
    """Places in the unit cube, and the ranks of the values scaled to [0, 1]."""
    points = np.array([state.space.encode(told.trial.params) for told in state.ranked])
    return points, np.linspace(0.0, 1.0, len(points))


class PedAnova(AbstractImportance):
    """How far the best trials' distribution of each leaf differs from that of all trials.

        v_i = mean over x ~ q_i of (p_i(x)/q_i(x) - 1)²

    with p_i, q_i Gaussian kernel densities of leaf i over the best `quantile` of the trials and over all of them, by
    the same bandwidth, on its range. A leaf whose value does not matter has p = q. In small samples v_i is biased
    upwards by about 1/(number of best trials), alike for all leaves; as many times the noise is subtracted, from
    permutations of which trials are the best.

    **Source**: after Watanabe, Bansal and Hutter (2023), "PED-ANOVA"; kernel, bandwidth and subtraction are ours.
    """

    quantile: float = 0.2
    permutations: int = 20

    def __check_init__(self) -> None:
        if not 0 < self.quantile < 1:
            raise ValueError(f"quantile must lie in (0, 1), got {self.quantile}")

    def __call__(self, state: SearcherState) -> dict[str, float]:
        """The weight of every block."""
        points, _ = _table(state)
        best = max(2, int(np.ceil(self.quantile * len(points))))
        if len(points) <= best:
            return dict.fromkeys(state.space.blocks, 0.0)
        grid = (np.arange(64) + 0.5) / 64
        width = 0.5 * best**-0.2
        # (grid, trials, leaves), each kernel normalised over the range
        kernels = np.exp(-0.5 * ((grid[:, None, None] - points[None]) / width) ** 2)
        kernels /= kernels.mean(0)
        every = kernels.mean(1)
        random = np.random.default_rng(0)
        orders = [np.arange(len(points)), *(random.permutation(len(points)) for _ in range(self.permutations))]
        divergence = [np.mean((kernels[:, order[:best]].mean(1) - every) ** 2 / every, 0) for order in orders]
        noise = np.mean(divergence[1:], 0) if self.permutations else 0.0
        weights = np.maximum(divergence[0] - noise, 0.0)
        return by_block(state, dict(zip(state.space.leaves, weights, strict=True)))


class RidgeImportance(AbstractImportance):
    """The share of the ranks' variance that a regression on x and (x - 1/2)² gives to each leaf.

        ranks ≈ a + sum_i b_i x_i + c_i (x_i - 1/2)²,  weight_i = b_i² + c_i² on standardised columns

    by ridge regression with penalty `ridge` times the number of trials. Ranks stand for the values, which may span
    orders of magnitude.
    """

    ridge: float = 0.1

    def __check_init__(self) -> None:
        if not self.ridge > 0:
            raise ValueError(f"ridge must be positive, got {self.ridge}")

    def __call__(self, state: SearcherState) -> dict[str, float]:
        """The weight of every block."""
        points, ranks = _table(state)
        if len(points) < 3:
            return dict.fromkeys(state.space.blocks, 0.0)
        columns = np.concatenate([points, (points - 0.5) ** 2], 1)
        columns = (columns - columns.mean(0)) / (columns.std(0) + 1e-12)
        gram = columns.T @ columns + self.ridge * len(points) * np.eye(columns.shape[1])
        fitted = np.linalg.solve(gram, columns.T @ (ranks - ranks.mean()))
        weights = (fitted.reshape(2, -1) ** 2).sum(0)
        return by_block(state, dict(zip(state.space.leaves, weights, strict=True)))


class HypergradientImportance(AbstractImportance):
    """The mean over trials of the hypergradient norm of each block, as told in `Result.block_norms`.

    Costs nothing where trials tune hyperparameters by gradient, see `tune_inside`. It measures what moving the
    continuous hyperparameters of a block would change, not its discrete ones.
    """

    def __call__(self, state: SearcherState) -> dict[str, float]:
        """The weight of every block: zero for all until a trial has told norms."""
        blocks = state.space.blocks
        told = [one.result.block_norms for one in state.ranked if one.result.block_norms]
        mean = {block: float(np.mean([norms.get(block, 0.0) for norms in told])) if told else 0.0 for block in blocks}
        return {block: norm if np.isfinite(norm) else 0.0 for block, norm in mean.items()}
