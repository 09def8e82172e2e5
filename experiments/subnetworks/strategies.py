"""Base searchers, and what is put around them."""

from typing import Literal, get_args

import hypergrad as hg

BaseName = Literal["random", "tpe"]
StrategyName = Literal["base", "divide", "adaptive", "both"]
STRATEGIES: tuple[StrategyName, ...] = get_args(StrategyName)


def tree_parzen(seed: int):
    """Optuna's TPE."""
    import optuna

    return optuna.samplers.TPESampler(seed=seed)


def searcher(
    base: BaseName, strategy: StrategyName, warmup: int, importance: hg.AbstractImportance
) -> hg.AbstractSearcher:
    """A base searcher alone, with divide and conquer, subnetwork-adaptive, or the second around the first."""
    alone = hg.RandomSearcher() if base == "random" else hg.OptunaSearcher(tree_parzen)
    divided = hg.DivideAndConquer(alone, warmup=warmup)
    return {
        "base": alone,
        "divide": divided,
        "adaptive": hg.SubnetworkAdaptive(alone, importance, warmup=warmup),
        "both": hg.SubnetworkAdaptive(divided, importance, warmup=warmup),
    }[strategy]
