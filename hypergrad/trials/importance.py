"""Measures of how much each block (subnetwork) matters, from what a search was told."""

import abc
from collections.abc import Mapping

import equinox as eqx
import numpy as np

from ..ground.checks import checked, field, integer, real
from .leaves import Categorical
from .state import STATE, SearcherState
from .trial import FinishedTrial

_ABSENT = object()


class AbstractImportance(eqx.Module):
    """A measure of the blocks: weights that are not negative, all zero where nothing can be said yet."""

    @abc.abstractmethod
    def __call__(self, state: SearcherState) -> dict[str, float]:
        """Returns the weight of every block."""


def by_block(state: SearcherState, weights: Mapping[str, float]) -> dict[str, float]:
    """Sums the weights of leaves over blocks."""
    return {block: float(sum(weights[name] for name in names)) for block, names in state.space.blocks.items()}


def _positions(state: SearcherState, ranked: list[FinishedTrial], name: str) -> np.ndarray:
    """Returns positions of a leaf in [0, 1], for choices their index; 1/2 or -1 where it is not active."""
    leaf = state.space.leaves[name]
    values = [one.trial.params.get(name, _ABSENT) for one in ranked]
    if isinstance(leaf, Categorical):
        return np.array([-1 if value is _ABSENT else leaf.choices.index(value) for value in values])
    return np.array([0.5 if value is _ABSENT else leaf.encode(value) for value in values])


class PedAnova(AbstractImportance):
    """The divergence of the best trials' distribution of each leaf from that of all trials.

        v_i = mean over x ~ q_i of (p_i(x)/q_i(x) - 1)²

    with p_i, q_i the densities of leaf i over the best `quantile` of the trials and over all of them, among the trials
    in which it is active: by Gaussian kernels of one bandwidth h on the range of a number, and for choices, which have
    no order, by the kernel 1 - h(k-1)/k for the same of k and h/k for another. A leaf whose value does not matter has
    p = q. In small samples v_i is biased upwards by about 1/(number of best trials), alike for all leaves; as many
    times the noise is subtracted, from permutations of which trials are the best. A leaf counts by the share of the
    trials in which it is active.

    **Source**: after Watanabe, Bansal and Hutter (2023), "PED-ANOVA"; kernels, bandwidth and subtraction are ours;
    the kernel of choices is that of Aitchison and Aitken (1976).

    **Example**

        >>> state = hg.trials.search_trials(hg.trials.Random(), space, objective, key=key, num_trials=40)
        >>> found = hg.trials.PedAnova()(state)
        >>> found["net"] > found["optimiser"]
        True
    """

    quantile: float = field(real("quantile", above=0, below=1), 0.2)
    permutations: int = field(integer("permutations", least=0), 20)

    @checked(STATE)
    def __call__(self, state: SearcherState) -> dict[str, float]:
        """Returns the weight of every block."""
        return by_block(state, {name: self._weight(state, name) for name in state.space.leaves})

    def _weight(self, state: SearcherState, name: str) -> float:
        leaf, ranked = state.space.leaves[name], state.ranked
        active = [one for one in ranked if name in one.trial.params]
        best = max(2, int(np.ceil(self.quantile * len(active))))
        if len(active) > best:  # equals of the last of the best are among them
            best = sum(one.result.value <= active[best - 1].result.value for one in active)
        if len(active) <= best:
            return 0.0
        width, positions = 0.5 * best**-0.2, _positions(state, active, name)
        if isinstance(leaf, Categorical):
            every_choice, number = np.arange(len(leaf.choices)), len(leaf.choices)
            kernels = width + (1 - width) * number * (every_choice[:, None] == positions)
        else:
            grid = (np.arange(64) + 0.5) / 64
            kernels = np.exp(-0.5 * ((grid[:, None] - positions) / width) ** 2)
            kernels /= kernels.mean(0)  # normalised over the range
        every = kernels.mean(1)
        random = np.random.default_rng(0)
        orders = [np.arange(len(active)), *(random.permutation(len(active)) for _ in range(self.permutations))]
        divergence = [np.mean((kernels[:, order[:best]].mean(1) - every) ** 2 / every) for order in orders]
        noise = np.mean(divergence[1:]) if self.permutations else 0.0
        return max(float(divergence[0] - noise), 0.0) * len(active) / len(ranked)


class RidgeImportance(AbstractImportance):
    """The share of the ranks' variance that a regression gives to each leaf.

        ranks ≈ a + Σ_i Σ_j b_ij c_ij,  weight_i = Σ_j b_ij²

    on standardised columns c_ij: x and (x - 1/2)² for a number at x in [0, 1], one indicator for each choice. By ridge
    regression with penalty `ridge` times the number of trials. Ranks stand for the values, which may span orders of
    magnitude; equal values have equal ranks. Where a leaf is not active a number counts as the middle of its range, a
    choice as the mean.

    **Example**

        >>> state = hg.trials.search_trials(hg.trials.Random(), space, objective, key=key, num_trials=40)
        >>> found = hg.trials.RidgeImportance()(state)
        >>> found["net"] > found["optimiser"]
        True
    """

    ridge: float = field(real("ridge", above=0), 0.1)

    @checked(STATE)
    def __call__(self, state: SearcherState) -> dict[str, float]:
        """Returns the weight of every block."""
        ranked, leaves = state.ranked, state.space.leaves
        if len(ranked) < 3:
            return dict.fromkeys(state.space.blocks, 0.0)
        parts = {name: self._columns(state, ranked, name) for name in leaves}
        columns, values = np.concatenate(list(parts.values()), 1), [one.result.value for one in ranked]
        first, after = np.searchsorted(values, values), np.searchsorted(values, values, "right")
        ranks = (first + after - 1) / (2 * (len(ranked) - 1))
        columns = (columns - columns.mean(0)) / (columns.std(0) + 1e-12)
        gram = columns.T @ columns + self.ridge * len(ranked) * np.eye(columns.shape[1])
        squares = np.linalg.solve(gram, columns.T @ (ranks - ranks.mean())) ** 2
        ends = np.cumsum([part.shape[1] for part in parts.values()])[:-1]
        weights = dict(zip(leaves, [float(part.sum()) for part in np.split(squares, ends)], strict=True))
        return by_block(state, weights)

    def _columns(self, state: SearcherState, ranked: list[FinishedTrial], name: str) -> np.ndarray:
        leaf, positions = state.space.leaves[name], _positions(state, ranked, name)[:, None]
        if isinstance(leaf, Categorical):
            columns = (positions == np.arange(len(leaf.choices))).astype(float)
            is_active = positions[:, 0] >= 0
            columns[~is_active] = columns[is_active].mean(0) if is_active.any() else 0.0
            return columns
        return np.concatenate([positions, (positions - 0.5) ** 2], 1)


class HypergradientImportance(AbstractImportance):
    """The mean over trials of the hypergradient norm of each block, as told in `Result.block_norms`.

    Costs nothing where trials tune hyperparameters by gradient, see `GradientTuner`. It measures what moving the
    continuous hyperparameters of a block would change, not its discrete ones.
    """

    @checked(STATE)
    def __call__(self, state: SearcherState) -> dict[str, float]:
        """Returns the weight of every block: zero for all until a trial has told norms."""
        blocks = state.space.blocks
        norms = [one.result.block_norms for one in state.ranked if one.result.block_norms]
        mean = {block: float(np.mean([one.get(block, 0.0) for one in norms])) if norms else 0.0 for block in blocks}
        return {block: norm if np.isfinite(norm) else 0.0 for block, norm in mean.items()}
