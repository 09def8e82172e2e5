"""Names of estimators, where several are compared."""

import dataclasses
from collections.abc import Mapping, Sequence

import equinox as eqx

from ...ground.checks import Rule
from ..base import ESTIMATOR, AbstractEstimator

Estimators = Mapping[str, AbstractEstimator] | Sequence[AbstractEstimator] | AbstractEstimator


def named_estimators(estimators: Estimators) -> dict[str, AbstractEstimator]:
    """Returns one or several estimators by name. **Raises** `TypeError` or `ValueError` where there are none."""
    several = [estimators] if isinstance(estimators, AbstractEstimator) else estimators
    named = several if isinstance(several, Mapping) else {_name(one): one for one in several}
    if not named:
        raise ValueError("estimators is empty")
    return {name: ESTIMATOR(one) for name, one in named.items()}


ESTIMATORS = Rule("estimators", "an estimator, or several in a list or a dictionary", named_estimators)


def _name(estimator: AbstractEstimator) -> str:
    """Returns the class with the fields that are not as they are by default, the inner solver left out."""
    fields = [f for f in dataclasses.fields(estimator) if f.repr and f.name != "inner"]
    changed = [f for f in fields if getattr(estimator, f.name) is not f.default]
    texts = [f"{f.name}={eqx.tree_pformat(getattr(estimator, f.name), width=200)}" for f in changed]
    return f"{type(estimator).__name__}({', '.join(texts)})"
