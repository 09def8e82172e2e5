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
    base: BaseName, strategy: StrategyName, warmup: int, importance: hg.trials.AbstractImportance
) -> hg.trials.AbstractSearcher:
    """A base searcher alone, with divide and conquer, subnetwork-adaptive, or the second around the first."""
    alone = hg.trials.Random() if base == "random" else hg.trials.Optuna(tree_parzen)
    divided = hg.trials.DivideAndConquer(alone, warmup=warmup)
    return {
        "base": alone,
        "divide": divided,
        "adaptive": hg.trials.SubnetworkAdaptive(alone, importance, warmup=warmup),
        "both": hg.trials.SubnetworkAdaptive(divided, importance, warmup=warmup),
    }[strategy]
