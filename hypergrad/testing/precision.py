"""Cases in single precision, whatever that of JAX."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

import hypergrad as hg

from .problems import Case


def single(tree: PyTree) -> PyTree:
    """Returns the tree with its floating numbers in float32."""
    change = lambda leaf: jnp.asarray(leaf, jnp.float32) if eqx.is_inexact_array_like(leaf) else leaf
    return jax.tree.map(change, tree)


def in_single_precision(case: Case) -> Case:
    """Returns the case in float32."""
    problem = case.problem
    problem = hg.BilevelProblem(problem.inner_loss, problem.outer_loss, single(problem.train), single(problem.valid))
    return Case(problem, single(case.params), single(case.hparams))
