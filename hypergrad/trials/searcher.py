"""The base of all searchers."""

import abc
import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array

from ..ground.checks import checked, instance, random_key
from .leaves import Float
from .space import Params, Space
from .state import STATE, SearcherState
from .trial import RESULT, TRIAL, Result, Trial, revised

NOTHING: Mapping[str, Any] = MappingProxyType({})
Proposal = tuple[Params, dict[str, Any]]  # values of the active leaves, and how they came about


SPACE = instance("space", Space, "a Space")


class Quick:
    """A method that is bound by a plain partial: a bound method of a module is a module, which takes 0.1 ms to make."""

    def __init__(self, function: Callable[..., Any]):
        self.function = function

    def __get__(self, searcher: Any, kind: type) -> Callable[..., Any]:
        return self.function if searcher is None else functools.partial(self.function, searcher)


class AbstractSearcher(eqx.Module):
    """A proposer of trials that learns from their results; a search such as `hypergrad.GradientSearch` trains too.

        state = searcher.init(space, key)
        state, trial = searcher.ask(state)
        state = searcher.tell(state, trial, Result(loss))

    A searcher is a function of the state, and the state is the same for all: everything asked and told so far.
    Therefore searchers nest, one can be changed for another half-way, and results that it never asked for may be told.
    A new searcher needs `propose` and `publish`.
    """

    @abc.abstractmethod
    def propose(self, state: SearcherState, random: np.random.Generator, fixed: Mapping[str, Any]) -> Proposal:
        """Returns values for the next trial, those of `fixed` kept where active, and notes for its `meta`.

        All randomness comes from `random`, which is that of ask number `state.asked`.
        """

    @abc.abstractmethod
    def publish(self, state: SearcherState, trial: Trial, result: Result) -> None:
        """Passes a result on to where others see it, such as a study on disk. Most searchers do nothing."""

    @checked(SPACE, random_key())
    def init(self, space: Space, key: Array) -> SearcherState:
        """Returns the state before the first ask. **Raises** `TypeError` for a space or a key that is none."""
        return SearcherState(space, seed_words(key))

    @Quick
    @checked(STATE, instance("fixed", Mapping, "a dictionary from names of leaves to values"))
    def ask(self, state: SearcherState, *, fixed: Mapping[str, Any] = NOTHING) -> tuple[SearcherState, Trial]:
        """Returns the next trial. Leaves in `fixed` keep their values; those of them that are not active are left out.

        **Raises** `ValueError` for a name or value of `fixed` that does not fit the space.
        """
        fixed = state.space.checked_some(fixed, "fixed") if fixed else fixed
        random = np.random.default_rng([*state.seed, state.asked])
        # By the class, because a bound method of a module is a module, and made anew at every call.
        params, meta = type(self).propose(self, state, random, fixed)
        trial = Trial(state.asked, state.space.checked(params), meta=meta)
        return state.after_ask(trial), trial

    @Quick
    @checked(STATE, TRIAL, RESULT)
    def tell(self, state: SearcherState, trial: Trial, result: Result) -> SearcherState:
        """Returns the state that knows the result. `trial` may be foreign: `Trial(None, params)`.

        **Raises** `ValueError` for values that do not fit the space, a hypergradient or a norm of what the space does
        not have, or a trial told twice or never asked for.
        """
        asked = [other for other in state.pending if other.number == trial.number]
        if trial.number is not None and not asked:
            raise ValueError(f"trial {trial.number} is not pending: told before, or of another search")
        refuse_unknown(state.space, result)
        known = asked and asked[0].params is trial.params  # and so was checked when it was asked for
        params = trial.params if known else state.space.checked(trial.params)
        if result.tuned:
            params = state.space.checked(params | result.tuned)
        trial = trial if params is trial.params else revised(trial, params=params)
        type(self).publish(self, state, trial, result)
        return state.after_tell(trial, result)


def refuse_unknown(space: Space, result: Result) -> None:
    """Raises `ValueError` where a result names a leaf or a block that the space does not have."""
    for field in ("hypergradient", "block_norms", "block_scores"):
        if not (named := getattr(result, field)):
            continue
        floats = [name for name, leaf in space.leaves.items() if isinstance(leaf, Float)]
        known = floats if field == "hypergradient" else list(space.blocks)
        if unknown := [name for name in named if name not in known]:
            kind, names = "Float leaf" if field == "hypergradient" else "block", ", ".join(known) or "none"
            raise ValueError(f"{field} of a Result has {unknown[0]!r}, no {kind} of the space, which has {names}")


def seed_words(key: Array) -> tuple[int, ...]:
    """Returns the words of a random key."""
    return tuple(int(word) for word in np.asarray(jax.random.key_data(key)))


SEARCHER, BASE = (instance(name, AbstractSearcher, "a searcher") for name in ("searcher", "base"))
