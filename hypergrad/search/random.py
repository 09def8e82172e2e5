"""Random search."""

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax
from jaxtyping import Array, PyTree

from ..ground.checks import checked, field, function
from ..ground.hparams import as_hparams
from ..ground.surprises import shape_of
from ..ground.tree import describe, strong
from ..inner import INNER, AbstractInnerSolver
from ..problem import PROBLEM, BilevelProblem
from ..training import Training
from .base import AbstractSearch, Record, SearchState, checked_step, conclude, first_state


class RandomSearch(AbstractSearch):
    """Hyperparameters drawn from a prior, each trained from the same initial model.

    **Arguments**: `inner`, the inner solver; `prior`, a function `key -> hparams`.

    *Cost*: `num_steps` iterations a draw. The first evaluation of the outer loss is not counted. Where the outer loss
    uses its key, `best` is chosen and reported by repeated evaluations; see `Best`.

    **Source**: Bergstra and Bengio (2012).

    **Example**

        >>> prior = lambda key: jax.random.uniform(key, minval=-5.0, maxval=1.0)
        >>> search = hg.RandomSearch(inner, prior)
        >>> state = search.init(problem, w, log_l2)
        >>> state, history = hg.run(search, problem, state, key=key, budget=200)
        >>> print(f"{history.value[0]:.3f} -> {state.best.value:.3f}")
        0.124 -> 0.118
    """

    inner: AbstractInnerSolver = field(INNER)
    prior: Callable[[Array], PyTree] = field(function("prior", "key -> hparams"))

    @property
    def num_inner_steps(self) -> int:
        """The training steps of one draw."""
        return self.inner.num_steps

    @checked(PROBLEM)
    def init(self, problem: BilevelProblem, params: PyTree, hparams: PyTree) -> SearchState:
        """Returns the state before the first draw; `hparams` gives structure and shapes.

        Raises `ValueError` where the prior draws something else, and warns where it does not draw by its key alone.
        """
        hparams, draw = as_hparams(hparams), lambda key: strong(self.prior(key))
        try:
            drawn = shape_of("prior", draw, jax.random.key(0))
        except Exception as error:  # of somebody's function
            raise ValueError(f"prior fails on a key: {type(error).__name__}: {error}") from error
        if describe(drawn) != describe(hparams):
            raise ValueError(f"prior draws {describe(drawn)}, but hparams is {describe(hparams)}")
        return first_state(
            problem, hparams, self.inner.init_to_learn(problem, params, hparams, differentiable=False), None
        )

    @checked_step
    @eqx.filter_jit
    def step(self, problem: BilevelProblem, state: SearchState, key: Array) -> tuple[SearchState, Record]:
        """Draws, trains, compares."""
        prior_key, key = jax.random.split(key)
        hparams = strong(self.prior(prior_key))
        training = Training(self.inner, problem, hparams, key)
        estimate, _ = training.evaluate(training.begin(state.inner_state, warm_start=False))
        return conclude(problem, dataclasses.replace(state, hparams=hparams), estimate, key, hparams, thrifty=False)
