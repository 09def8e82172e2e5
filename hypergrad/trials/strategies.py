"""Strategies for models of several subnetworks, around any searcher: divide and conquer, subnetwork-adaptive."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from .importance import AbstractImportance
from .searcher import AbstractSearcher, Proposal
from .space import Params, Space
from .trial import FinishedTrial, Result, SearcherState, Trial

TRIES = 20  # draws of a child before the base searcher is asked instead


class DivideAndConquer(AbstractSearcher):
    """Combines the subnetworks of the best trials: every block of a child is one of the `top` best of its kind.

    After `warmup` complete trials, with `probability`: each block is drawn from the `top` best that differ (children
    would fill the top with copies), leaves of no block are those of the best trial. A child that was tried before is
    drawn again; after 20 draws, and in all other cases, `base` is asked. `Trial.meta["donors"]` names the trial each
    block came from.

    **Arguments**

    - `base`: any searcher, another strategy included.
    - `top`, `probability`, `warmup`: as above.
    - `block_score(block, told)`: ranks the trials for each block by itself, lower is better; by default all are ranked
      by their value. `lambda block, told: told.result.block_scores[block]` uses scores measured in the trial.
    - `start`: what the objective reads in `meta["start"]`: `"scratch"`, or `"donor"` to begin from the donors' weights,
      which the objective has to keep.

    **Source**: after divide and conquer of arXiv:2202.11841, of which only the abstract was to be had: "the best
    subnetworks of top-performing models are combined". The rest is a reconstruction.
    """

    base: AbstractSearcher
    top: int = 5
    probability: float = 0.5
    warmup: int = 20
    block_score: Callable[[str, FinishedTrial], float] | None = None
    start: Literal["scratch", "donor"] = "scratch"

    def __check_init__(self) -> None:
        _check_strategy(self)
        if not (isinstance(self.top, int) and self.top >= 2):
            raise ValueError(f"top must be an integer of at least 2, got {self.top!r}")
        if self.start not in ("scratch", "donor"):
            raise ValueError(f"start must be 'scratch' or 'donor', got {self.start!r}")

    def propose(self, state: SearcherState, random: np.random.Generator, fixed: Mapping[str, Any]) -> Proposal:
        """A child, or what the base searcher proposes."""
        _check_blocks(state.space)
        complete = state.ranked
        if len(complete) >= self.warmup and random.random() < self.probability:
            known = [told.trial.params for told in state.history] + [trial.params for trial in state.pending]
            donors = {block: self._donors(block, names, complete) for block, names in state.space.blocks.items()}
            for _ in range(TRIES):
                chosen = {block: top[random.integers(len(top))] for block, top in donors.items()}
                filling = random.random(len(state.space.leaves))  # for leaves that no donor has
                params = state.space.decode(filling, combined(state.space, chosen, complete[0]) | dict(fixed))
                if params not in known:
                    numbers = {block: told.trial.number for block, told in chosen.items()}
                    return params, {"strategy": "divide", "donors": numbers, "start": self.start}
        return self.base.propose(state, random, fixed)

    def publish(self, state: SearcherState, trial: Trial, result: Result) -> None:
        """Leaves it to the base searcher."""
        self.base.publish(state, trial, result)

    def _donors(self, block: str, names: tuple[str, ...], complete: list[FinishedTrial]) -> list[FinishedTrial]:
        if self.block_score is not None:
            score = self.block_score
            complete = sorted(complete, key=lambda told: score(block, told))
        different: list[FinishedTrial] = []
        seen: list[Params] = []
        for told in complete:
            own = {name: told.trial.params[name] for name in names if name in told.trial.params}
            if own not in seen:
                seen.append(own)
                different.append(told)
        return different[: self.top]


class SubnetworkAdaptive(AbstractSearcher):
    """Spends trials on subnetworks by their importance: one block moves, the others stay as in the best trial.

    After `warmup` complete trials, with `probability`: block s is drawn with probability

        p_s = (1 - uniform) importance_s / sum importance + uniform / S

    and `base` is asked for that block alone, all other leaves fixed at the best trial. In all other cases `base` is
    asked for everything. `Trial.meta["block"]` names the block that moved.

    **Arguments**

    - `base`: any searcher, another strategy included.
    - `importance`: `PedAnova()`, `RidgeImportance()`, `HypergradientImportance()` or any function from a state to the
      weights of the blocks. Until one of them is positive all blocks are alike.
    - `probability`, `warmup`, `uniform`: as above.

    **Source**: after subnetwork-adaptive search of arXiv:2202.11841, of which only the abstract was to be had:
    "distributes computational resources based on the importance of each subnetwork". The rest is a reconstruction.
    """

    base: AbstractSearcher
    importance: AbstractImportance | Callable[[SearcherState], Mapping[str, float]]
    probability: float = 0.8
    warmup: int = 20
    uniform: float = 0.2

    def __check_init__(self) -> None:
        _check_strategy(self)
        if not 0 <= self.uniform <= 1:
            raise ValueError(f"uniform must lie in [0, 1], got {self.uniform}")

    def propose(self, state: SearcherState, random: np.random.Generator, fixed: Mapping[str, Any]) -> Proposal:
        """One block anew, or what the base searcher proposes."""
        _check_blocks(state.space)
        best = state.best
        if best is None or len(state.ranked) < self.warmup or random.random() >= self.probability:
            return self.base.propose(state, random, fixed)
        blocks = list(state.space.blocks)
        block = blocks[random.choice(len(blocks), p=self.shares(state))]
        held = state.space.restrict(block, at=best.trial.params)
        params, meta = self.base.propose(state, random, held | dict(fixed))
        return params, meta | {"block": block}

    def publish(self, state: SearcherState, trial: Trial, result: Result) -> None:
        """Leaves it to the base searcher."""
        self.base.publish(state, trial, result)

    def shares(self, state: SearcherState) -> np.ndarray:
        """The probability of each block, in order. **Raises** `ValueError` for importances that are no weights."""
        blocks = list(state.space.blocks)
        found = self.importance(state)
        if missing := [block for block in blocks if block not in found]:
            raise ValueError(f"importance says nothing of block {missing[0]!r}")
        weights = np.array([found[block] for block in blocks], float)
        if not np.all(np.isfinite(weights)) or np.any(weights < 0):
            raise ValueError(f"importance must be finite and not negative, got {dict(found)}")
        total = weights.sum()
        even = np.full(len(blocks), 1 / len(blocks))
        return (1 - self.uniform) * weights / total + self.uniform * even if total > 0 else even


def combined(space: Space, donors: Mapping[str, FinishedTrial], shared: FinishedTrial) -> Params:
    """Each block's leaves from its donor, leaves of no block from `shared`; leaves that no donor has are missing."""
    params: Params = {}
    for name, leaf in space.leaves.items():
        source = shared if leaf.block is None else donors[leaf.block]
        if name in source.trial.params:
            params[name] = source.trial.params[name]
    return params


def _check_strategy(strategy: Any) -> None:
    if not isinstance(strategy.base, AbstractSearcher):
        raise TypeError(f"base must be a searcher, got {strategy.base!r}")
    if not 0 <= strategy.probability <= 1:
        raise ValueError(f"probability must lie in [0, 1], got {strategy.probability}")
    if not (isinstance(strategy.warmup, int) and strategy.warmup >= 1):
        raise ValueError(f"warmup must be a positive integer, got {strategy.warmup!r}")


def _check_blocks(space: Space) -> None:
    if len(space.blocks) < 2:
        raise ValueError(f"the space has {len(space.blocks)} blocks: this strategy needs leaves in at least two")
