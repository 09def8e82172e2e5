"""Strategies for models of several subnetworks, around any searcher: divide and conquer, subnetwork-adaptive."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from ..ground.checks import choice, field, function, integer, real
from .importance import AbstractImportance
from .searcher import BASE, AbstractSearcher, Proposal
from .space import Params, Space
from .state import SearcherState
from .trial import FinishedTrial, Result, Trial

PROBABILITY, WARMUP = real("probability", least=0, most=1), integer("warmup", least=1)
TRIES = 20  # draws of a child before the base searcher is asked instead


class DivideAndConquer(AbstractSearcher):
    """A combination of the subnetworks of the best trials: every block of a child is one of the `top` best of its kind.

    After `warmup` successful trials, with `probability`: each block is drawn from the `top` best that differ (children
    would fill the top with copies), leaves of no block are those of the best trial. A child that was tried before is
    drawn again; after 20 draws, and in all other cases, `base` is asked. `Trial.meta["donors"]` names the trial each
    block came from.

    **Arguments**

    - `base`: any searcher, another strategy included.
    - `top`, `probability`, `warmup`: as above.
    - `block_score(block, one)`: ranks the finished trials for each block by itself, lower is better; by default all are
      ranked by their value. `lambda block, one: one.result.block_scores[block]` uses scores measured in the trial.
    - `start`: `"scratch"`, or `"donor"` to begin from the donors' weights, which the objective has to keep; it reads
      this in `meta["start"]`.

    **Source**: after divide and conquer of arXiv:2202.11841, of which only the abstract was available: "the best
    subnetworks of top-performing models are combined". The rest is a reconstruction.

    **Example**

        >>> searcher = hg.trials.DivideAndConquer(hg.trials.Random(), warmup=5)
        >>> state = hg.trials.search_trials(searcher, space, objective, key=key, num_trials=20)
        >>> sum("donors" in one.trial.meta for one in state.history)
        7
    """

    base: AbstractSearcher = field(BASE)
    top: int = field(integer("top", least=2), 5)
    probability: float = field(PROBABILITY, 0.5)
    warmup: int = field(WARMUP, 20)
    block_score: Callable[[str, FinishedTrial], float] | None = field(
        function("block_score", "(block, finished trial) -> score", optional=True), None
    )
    start: Literal["scratch", "donor"] = field(choice("start", "scratch", "donor"), "scratch")

    def propose(self, state: SearcherState, random: np.random.Generator, fixed: Mapping[str, Any]) -> Proposal:
        """Proposes a child, or asks the base searcher."""
        _check_blocks(state.space)
        ranked = state.ranked
        if len(ranked) >= self.warmup and random.random() < self.probability:
            known = [one.trial.params for one in state.history] + [trial.params for trial in state.pending]
            donors = {block: self._donors(block, names, ranked) for block, names in state.space.blocks.items()}
            for _ in range(TRIES):
                chosen = {block: top[random.integers(len(top))] for block, top in donors.items()}
                filling = random.random(len(state.space.leaves))  # for leaves that no donor has
                params = state.space.decode(filling, combined(state.space, chosen, ranked[0]) | dict(fixed))
                if params not in known:
                    numbers = {block: one.trial.number for block, one in chosen.items()}
                    return params, {"strategy": "divide", "donors": numbers, "start": self.start}
        return self.base.propose(state, random, fixed)

    def publish(self, state: SearcherState, trial: Trial, result: Result) -> None:
        """Leaves it to the base searcher."""
        self.base.publish(state, trial, result)

    def _donors(self, block: str, names: tuple[str, ...], ranked: list[FinishedTrial]) -> list[FinishedTrial]:
        if self.block_score is not None:
            score = self.block_score
            ranked = sorted(ranked, key=lambda one: score(block, one))
        different: list[FinishedTrial] = []
        seen: list[Params] = []
        for one in ranked:
            own = {name: one.trial.params[name] for name in names if name in one.trial.params}
            if own not in seen:
                seen.append(own)
                different.append(one)
        return different[: self.top]


class SubnetworkAdaptive(AbstractSearcher):
    """A search of subnetworks by their importance: one block moves, the others stay as in the best trial.

    After `warmup` successful trials, with `probability`: block s is drawn with probability

        p_s = (1 - uniform) importance_s / sum importance + uniform / S

    and `base` is asked for that block alone, all other leaves fixed at the best trial. In all other cases `base` is
    asked for everything. `Trial.meta["block"]` names the block that moved.

    **Arguments**

    - `base`: any searcher, another strategy included.
    - `importance`: `PedAnova()`, `RidgeImportance()`, `HypergradientImportance()` or any function from a state to the
      weights of the blocks. Until one of them is positive all blocks are alike.
    - `probability`, `warmup`, `uniform`: as above.

    **Source**: after subnetwork-adaptive search of arXiv:2202.11841, of which only the abstract was available:
    "distributes computational resources based on the importance of each subnetwork". The rest is a reconstruction.

    **Example**

        >>> searcher = hg.trials.SubnetworkAdaptive(hg.trials.Random(), hg.trials.PedAnova(), warmup=5)
        >>> state = hg.trials.search_trials(searcher, space, objective, key=key, num_trials=20)
        >>> sum(one.trial.meta.get("block") == "net" for one in state.history)
        2
    """

    base: AbstractSearcher = field(BASE)
    importance: AbstractImportance | Callable[[SearcherState], Mapping[str, float]] = field(
        function("importance", "from a SearcherState to the weights of the blocks")
    )
    probability: float = field(PROBABILITY, 0.8)
    warmup: int = field(WARMUP, 20)
    uniform: float = field(real("uniform", least=0, most=1), 0.2)

    def propose(self, state: SearcherState, random: np.random.Generator, fixed: Mapping[str, Any]) -> Proposal:
        """Proposes one block anew, or asks the base searcher."""
        _check_blocks(state.space)
        best = state.best
        if best is None or len(state.ranked) < self.warmup or random.random() >= self.probability:
            return self.base.propose(state, random, fixed)
        blocks = list(state.space.blocks)
        block = blocks[random.choice(len(blocks), p=self.probabilities(state))]
        held = state.space.restrict(block, at=best.trial.params)
        params, meta = self.base.propose(state, random, held | dict(fixed))
        return params, meta | {"block": block}

    def publish(self, state: SearcherState, trial: Trial, result: Result) -> None:
        """Leaves it to the base searcher."""
        self.base.publish(state, trial, result)

    def probabilities(self, state: SearcherState) -> np.ndarray:
        """Returns those of the blocks, in order. **Raises** `ValueError` for importances that are no weights."""
        blocks = list(state.space.blocks)
        found = self.importance(state)
        if missing := [block for block in blocks if block not in found]:
            raise ValueError(f"importance has no weight for block {missing[0]!r}")
        weights = np.array([found[block] for block in blocks], float)
        if not np.all(np.isfinite(weights)) or np.any(weights < 0):
            raise ValueError(f"importance must be finite and not negative, got {dict(found)}")
        total = weights.sum()
        even = np.full(len(blocks), 1 / len(blocks))
        return (1 - self.uniform) * weights / total + self.uniform * even if total > 0 else even


def combined(space: Space, donors: Mapping[str, FinishedTrial], shared: FinishedTrial) -> Params:
    """Returns each block's leaves from its donor, and leaves of no block from `shared`, as far as they have them."""
    params: Params = {}
    for name, leaf in space.leaves.items():
        source = shared if leaf.block is None else donors[leaf.block]
        if name in source.trial.params:
            params[name] = source.trial.params[name]
    return params


def _check_blocks(space: Space) -> None:
    if len(space.blocks) < 2:
        raise ValueError(f"the space has {len(space.blocks)} blocks: this strategy needs leaves in at least two")
