"""Spaces, trials and results as Optuna has them. The only module that imports optuna."""

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from ..leaves import Categorical, Int
from ..space import Params, Space
from ..trial import Result


def package() -> Any:
    """Imports optuna. **Raises** `ImportError` with the extra to install."""
    try:
        import optuna
    except ImportError as error:
        raise ImportError("Optuna needs optuna: pip install 'hypergrad-jax[optuna]'") from error
    return optuna


def check_requirements(sampler: Any) -> None:
    """Raises `ImportError` for a package that a sampler needs; Optuna would only miss it after its first trials."""
    samplers = package().samplers
    for kind, name, extra in ((samplers.CmaEsSampler, "cmaes", "optuna"), (samplers.GPSampler, "torch", "gp")):
        if isinstance(sampler, kind) and find_spec(name) is None:
            raise ImportError(f"{kind.__name__} needs {name}: pip install 'hypergrad-jax[{extra}]'")


@contextmanager
def quiet(warn: bool) -> Iterator[None]:
    """Silences the note that a study was created and, unless `warn`, warnings about experimental classes."""
    logging = package().logging
    verbosity = logging.get_verbosity()
    logging.set_verbosity(max(verbosity, logging.WARNING))
    try:
        with warnings.catch_warnings():
            if not warn:
                warnings.simplefilter("ignore", package().exceptions.ExperimentalWarning)
            yield
    finally:
        logging.set_verbosity(verbosity)


def suggested(
    study: Any, sampler: Any, space: Space, fixed: Mapping[str, Any], **attributes: Any
) -> tuple[Any, Params]:
    """Asks a study for a trial; returns Optuna's trial and the values of the active leaves, `fixed` ones kept.

    The user attributes are set first, so that a trial whose process is killed says whose it was.
    """
    study.sampler = sampler
    if fixed:
        with quiet(False):  # about a class that Optuna calls experimental
            study.sampler = package().samplers.PartialFixedSampler(dict(fixed), sampler)
    trial = study.ask()
    for name, value in attributes.items():
        trial.set_user_attr(name, value)
    params: Params = {}
    for name, leaf in space.leaves.items():
        if leaf.when is None or leaf.when.holds(params):
            try:
                value = _suggest(trial, name, leaf)
            except ValueError as error:
                tell(study, trial, Result.failure(error))
                raise ValueError(f"leaf {name!r} does not fit the study: {error}") from error
            params[name] = fixed.get(name, value)
    return trial, params


def _suggest(trial: Any, name: str, leaf: Any) -> Any:
    if isinstance(leaf, Categorical):
        return trial.suggest_categorical(name, leaf.choices)
    suggest = trial.suggest_int if isinstance(leaf, Int) else trial.suggest_float
    return suggest(name, leaf.low, leaf.high, log=leaf.log)


def distribution(leaf: Any) -> Any:
    """Returns the distribution of a leaf."""
    kinds = package().distributions
    if isinstance(leaf, Categorical):
        return kinds.CategoricalDistribution(leaf.choices)
    kind = kinds.IntDistribution if isinstance(leaf, Int) else kinds.FloatDistribution
    return kind(leaf.low, leaf.high, log=leaf.log)


def frozen(space: Space, params: Params, result: Result | None, **attributes: Any) -> Any:
    """Returns a trial to add to a study: running without a result, else complete or failed."""
    trials = package().trial
    if result is None:
        outcome: dict[str, Any] = {"state": trials.TrialState.RUNNING}
    else:
        outcome = {"state": trials.TrialState.FAIL} if result.failed else {"value": result.value}
        if result.pruned:
            outcome = {"state": trials.TrialState.PRUNED}
        outcome["intermediate_values"] = {int(step): value for step, value in result.reported}
    distributions = {name: distribution(space.leaves[name]) for name in params}
    return trials.create_trial(params=params, distributions=distributions, **outcome, **attributes)


def completed(trial: Any) -> Any:
    """Returns a complete trial to add to a study, with the values of one that holds a value and another state."""
    kept = {name: getattr(trial, name) for name in ("params", "distributions", "value", "user_attrs")}
    return package().trial.create_trial(**kept, intermediate_values=trial.intermediate_values)


def tell(study: Any, trial: Any, result: Result) -> bool:
    """Tells the result of a trial of the study, with what it reported; one that was told before stays as it is.

    Returns `False` for one that another process gave up before.

    A grid that has no more points asks the study to stop, which only Optuna's own loop can. It is left to begin again.
    """
    states = package().trial.TrialState
    for step, value in result.reported:
        trial.report(value, int(step))
    state = states.FAIL if result.failed else states.PRUNED if result.pruned else None
    try:
        told = study.tell(trial, result.value if state is None else None, state=state, skip_if_finished=True)
    except RuntimeError as error:
        if "Study.stop" not in str(error):
            raise
        return True
    return bool(told.state == (state or states.COMPLETE))


def attributes(result: Result) -> dict[str, Any]:
    """Returns all that a study keeps of a result except its value, as user attributes."""
    found = {
        name: value for name, value in vars(result).items() if name not in ("value", "reported", "exception") and value
    }
    return _without_nan(found)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value
