"""Black-box searches within a cell."""

from collections.abc import Callable

import hypergrad as hg

from .cells import Advance


def by_trial(advance: Advance, total: int) -> Callable[[hg.trials.SearcherState], None]:
    """Returns a callback of a search, of one or more steps, that advances by the trials told since, of `total`."""
    done = 0

    def after(state: hg.trials.SearcherState) -> None:
        nonlocal done
        new = len(state.history) - (done if done < len(state.history) else 0)  # a new step starts with no trials
        done = len(state.history)
        advance(new / total)

    return after
