"""Descent along the hypergradients that trials tell."""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..ground.checks import field, integer, optimiser, real
from .leaves import Float
from .searcher import BASE, AbstractSearcher, Proposal
from .space import Params, Space
from .state import SearcherState
from .trial import FinishedTrial, Result, Trial


class Descent(AbstractSearcher):
    """A descent from the best of the first trials of another searcher along told hypergradients.

        Descent(Random(), optax.adam(0.1), starts=5)

    The first `starts` trials are those of `base`. From the best of them the `Float` leaves move by `optimiser`; all
    other leaves stay. A leaf is a number z in [-1, 1] over its range (over that of its logarithm with `log`), so that
    one learning rate fits all:

        z <- clip(z + u, -1, 1),   u = optimiser(dvalue/dz),   dvalue/dz = (high - low)/2 · hypergradient

    A step that fails, tells no hypergradient or ends more than `rtol` |best| above the best value is taken back:
    the next one goes from the best trial, half as long, its optimiser started anew. Leaves that a hypergradient does
    not name stay. While a trial of the descent is pending, before any has succeeded, and where the best trial told no
    hypergradient when it was trained again twice, `base` is asked.

    Objectives tell the hypergradient where `trial.needs_hypergradient`, as a dictionary `Result.hypergradient`.

    *Cost*: a trial with its hypergradient per step. *When not to use it*: where trials are noisy, since a step is
    judged by one value.

    **Raises** `TypeError` or `ValueError` for settings that do not fit.

    **Example**

        >>> line = hg.trials.Space({"x": hg.trials.Float(-1.0, 1.0)})
        >>> parabola = lambda trial, key: hg.trials.Result(
        ...     trial.params["x"] ** 2, hypergradient={"x": 2 * trial.params["x"]}
        ... )
        >>> searcher = hg.trials.Descent(hg.trials.Random(), optax.adam(0.1), starts=3)
        >>> state = hg.trials.search_trials(searcher, line, parabola, key=key, num_trials=20)
        >>> state.best.result.value < 1e-3
        True
    """

    base: AbstractSearcher = field(BASE)
    optimiser: optax.GradientTransformation = field(optimiser("optimiser"))
    starts: int = field(integer("starts", least=1), 5)
    rtol: float = field(real("rtol", least=0), 0.02)

    def propose(self, state: SearcherState, random: np.random.Generator, fixed: Mapping[str, Any]) -> Proposal:
        """Proposes the next step, or asks the base searcher."""
        best = min(reversed(state.ranked), key=lambda one: one.result.value, default=None)  # of equals the newest
        busy = any(trial.needs_hypergradient for trial in state.pending)
        if state.asked < self.starts or best is None or busy:
            return self.base.propose(state, random, fixed)
        steps = [*itertools.islice((one for one in reversed(state.history) if one.trial.needs_hypergradient), 2)]
        if len(steps) == 2 and all(_is_lost(one, best) for one in steps):
            return self.base.propose(state, random, fixed)
        last = steps[0] if steps else None
        if last is None:
            params, note = best.trial.params, {"scale": 1.0, "optimiser": None}
        elif self._is_worse(last, best):
            params, note = self._moved(state.space, best, {"scale": last.trial.meta["descent"]["scale"] / 2})
        else:
            params, note = self._moved(state.space, last, last.trial.meta["descent"])
        return state.space.decode(state.space.encode(params), params | dict(fixed)), {"descent": note}

    def publish(self, state: SearcherState, trial: Trial, result: Result) -> None:
        """Leaves it to the base searcher."""
        self.base.publish(state, trial, result)

    def _is_worse(self, last: FinishedTrial, best: FinishedTrial) -> bool:
        limit = best.result.value + self.rtol * abs(best.result.value)
        return last.result.failed or not _is_usable(last.result) or last.result.value > limit

    def _moved(self, space: Space, start: FinishedTrial, note: Mapping[str, Any]) -> tuple[Params, dict[str, Any]]:
        """Returns the values after one step from a trial, and the scale and the optimiser's state as plain values."""
        params = start.trial.params
        if not _is_usable(start.result):
            return params, {"scale": note["scale"], "optimiser": None}
        leaves = {name: leaf for name, leaf in space.leaves.items() if isinstance(leaf, Float) and name in params}
        ranges = {name: _Range(leaf) for name, leaf in leaves.items() if leaf.low < leaf.high}
        slope = start.result.hypergradient
        with jax.enable_x64(True):
            z = {name: jnp.asarray(span.scaled(params[name])) for name, span in ranges.items()}
            slopes = {name: jnp.asarray(span.half * slope.get(name, 0.0)) for name, span in ranges.items()}
            opt_state = self.optimiser.init(z)
            if note.get("optimiser") is not None:
                like, treedef = jax.tree.flatten(opt_state)
                kept = zip(note["optimiser"], like, strict=True)
                opt_state = jax.tree.unflatten(treedef, [jnp.asarray(value, leaf.dtype) for value, leaf in kept])
            updates, opt_state = self.optimiser.update(slopes, opt_state, z)
            step = jax.tree.map(lambda update: note["scale"] * update, updates)
            z = optax.tree.clip(optax.apply_updates(z, step), -1.0, 1.0)
            values = {name: span.value(float(z[name])) for name, span in ranges.items()}
            carried = [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(opt_state)]
        return params | values, {"scale": note["scale"], "optimiser": carried}


def _is_lost(one: FinishedTrial, best: FinishedTrial) -> bool:
    """Returns whether the best trial was trained again and told no direction."""
    return one.trial.params == best.trial.params and not _is_usable(one.result)


def _is_usable(result: Result) -> bool:
    return bool(result.hypergradient) and all(math.isfinite(slope) for slope in result.hypergradient.values())


class _Range:
    """The range of a leaf as [-1, 1]."""

    def __init__(self, leaf: Float):
        low, high = (math.log(leaf.low), math.log(leaf.high)) if leaf.log else (leaf.low, leaf.high)
        self.leaf, self.middle, self.half = leaf, (low + high) / 2, (high - low) / 2

    def scaled(self, value: float) -> float:
        return ((math.log(value) if self.leaf.log else value) - self.middle) / self.half

    def value(self, z: float) -> float:
        found = self.middle + z * self.half
        return min(max(math.exp(found) if self.leaf.log else found, self.leaf.low), self.leaf.high)
