"""Optuna's pruners, for any searcher."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import equinox as eqx

from ...ground.checks import checked, field, function, shown
from ..state import STATE, SearcherState
from ..trial import TRIAL, FinishedTrial, Trial
from ..uncopied import Uncopied, uncopied_field
from . import translation


class _Kept(Uncopied):
    """The study of a search, the trials under way by number, and how many results it knows."""

    def __init__(self) -> None:
        self.study: Any = None
        self.running: dict[int | None, Any] = {}
        self.known = 0
        self.last: FinishedTrial | None = None


class Pruner(eqx.Module):
    """Any Optuna pruner: median, percentile, successive halving, Hyperband.

        search_trials(searcher, space, objective, key=key, num_trials=100, pruner=Pruner(optuna.pruners.MedianPruner))

    `make()` returns the pruner. It sees the values that trials report (`Trial.report`), of any searcher; a search that
    was stopped reports them again.

    **Raises** `ImportError` without optuna.

    **Example**

        >>> import optuna
        >>> def reporting(trial, key):
        ...     for step in range(5):  # of a training
        ...         value = objective(trial, key) + 1 / (step + 1)
        ...         if trial.report(step, value):
        ...             return hg.trials.Result(value, pruned=True)
        ...     return value
        ...
        >>> pruner = hg.trials.Pruner(optuna.pruners.MedianPruner)
        >>> state = hg.trials.search_trials(
        ...     hg.trials.Random(), space, reporting, key=key, num_trials=20, pruner=pruner
        ... )
        >>> sum(one.result.pruned for one in state.history)
        11
    """

    make: Callable[[], Any] = field(function("make", "without arguments that returns an Optuna pruner"))
    kept: _Kept = uncopied_field(_Kept)

    @checked(STATE, TRIAL)
    def begin(self, state: SearcherState, trial: Trial) -> Callable[[int, float], bool]:
        """Returns the function that takes the values of a trial and returns True if it is to be stopped."""
        with translation.quiet(False):
            running = self.kept.running[trial.number] = self._study(state).ask()

        def report(step: int, value: float) -> bool:
            running.report(value, step)
            return bool(running.should_prune())

        return report

    def _study(self, state: SearcherState) -> Any:
        """Returns the study, which knows all results of the state."""
        kept, optuna = self.kept, translation.package()
        follows = kept.known <= len(state.history) and (not kept.known or state.history[kept.known - 1] == kept.last)
        if kept.study is None or not follows:
            vars(kept).update(vars(_Kept()))
            pruner = self.make()
            if not isinstance(pruner, optuna.pruners.BasePruner):
                raise TypeError(f"make must return an Optuna pruner, got {shown(pruner)}")
            kept.study = optuna.create_study(pruner=pruner, sampler=optuna.samplers.RandomSampler(0))
        for one in state.history[kept.known :]:
            trial = kept.running.pop(one.trial.number, None)
            if trial is None:  # of an earlier process
                trial = kept.study.ask()
                for step, value in one.result.reported:
                    trial.report(value, int(step))
                    trial.should_prune()
            translation.tell(kept.study, trial, replace(one.result, reported=[]))
            kept.last = one
        kept.known = len(state.history)
        return kept.study
