"""Options that have a meaning only with others, and methods next to the main ones, with an argument table each."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ensembles as ens
import hypergrad as hg

from .kinds import Function, Int, Kind, Mapping, Only, Real, Some, Text, Word, numeric
from .library import HPARAMS, INNER, PARAMS, PROBLEM, WARM
from .searches import or_function
from .statistics import KEEP, MASK, Numbers, rows
from .trials import LEAF, SPACE_KIND, T, loss

ARRAYS = list | tuple | np.ndarray | jax.Array
CHECK = Only(lambda: hg.ErrorCheck(2), optional=True)
AUTO = functools.partial(hg.Reverse, INNER, checkpoints="auto")
MOMENTUM = Only(lambda: hg.OptaxSolver(hg.MomentumSGD(0.1, 0.9), 3))
SOLVERS = (hg.CG(), hg.NormalCG(), hg.MINRES(), hg.GMRES(), hg.Neumann(), hg.Nystrom(2), hg.Dense())
AMOUNT = {"iterations": Int(3, least=1, optional=True), "gradients": Int(3, least=1, optional=True)}
AMOUNT |= {"epochs": Real(3.0, above=0, optional=True), "seconds": Real(3.0, above=0, optional=True)}


def some_values(value):
    """The verdict on values of which a leaf may have any."""
    return None if value is None or isinstance(value, list | tuple | range | set) or "iterator" in str(value) else False


def budgets(**amounts):
    """A budget of each amount."""
    return [hg.Budget(**{name: amount}) for name, amount in amounts.items() if amount is not None]


def spent(budget):
    return T.search_trials(T.Random(), SPACE_KIND.right(), counted, key=jax.random.key(0), num_trials=3, budget=budget)


def counted(trial, key):
    return T.Result(loss(trial, key), iterations=1)


OPTIONS = {
    "Reverse.auto": (AUTO, {"memory_limit": Real(1e6, above=0, optional=True), "check": CHECK}),
    "Reverse.remat": (
        functools.partial(hg.Reverse, INNER),
        {"remat": Kind(lambda: True, lambda v: isinstance(v, bool | np.bool_))},
    ),
    "Reverse.plan": (hg.Reverse(INNER).plan, {"problem": PROBLEM, "params": PARAMS, "hparams": HPARAMS}),
    "DrMAD.check": (hg.DrMAD, WARM | {"check": CHECK}),
    "Greedy.check": (hg.Greedy, WARM | {"check": CHECK}),
    "OneStep.check": (hg.OneStep, WARM | {"check": CHECK}),
    "Reversible.check": (hg.Reversible, WARM | {"inner": MOMENTUM, "check": CHECK}),
    "Budgets": (budgets, AMOUNT),
    **{
        f"{type(solver).__name__}.solve.init": (
            functools.partial(solver.solve, lambda v: 2 * v, jnp.ones(2)),
            {"init": Some(lambda: jnp.zeros(2)), "rtol": Real(0.0, least=0)},
        )
        for solver in SOLVERS
    },
    "Categorical.when": (functools.partial(T.Categorical, ("u", "v")), {"block": LEAF["block"], "when": LEAF["when"]}),
    "When.one_of": (T.When, {"parent": Text("a"), "one_of": Kind(lambda: (1, 2), some_values)}),
    "Result.more": (
        functools.partial(T.Result, 1.0),
        {
            "gradients": Real(1.0, least=0),
            "compile_seconds": Real(1.0, least=0),
            "tuned": Mapping({}),
            "block_norms": Mapping({}),
            "block_scores": Mapping({}),
            "reported": Kind(lambda: [], lambda v: None if isinstance(v, ARRAYS) else False),
            "exception": Kind(lambda: ValueError("no"), lambda v: v is None or isinstance(v, Exception)),
        },
    ),
    "search_trials.budget": (spent, {"budget": Only(lambda: hg.Budget(iterations=2), optional=True)}),
    "calibration_error.errors": (
        functools.partial(ens.calibration_error, *rows()),
        {
            "errors": Kind(
                lambda: jnp.ones(3), lambda v: True if v is None else None if numeric(v) is not None else False
            ),
            "mask": MASK,
            "keep": KEEP,
        },
    ),
    "holdout_masks.strata": (
        functools.partial(ens.holdout_masks, jax.random.key(0), 6, 0.5, 2),
        {"strata": Numbers(lambda: np.array([0, 0, 0, 1, 1, 1]), optional=True)},
    ),
    "replicate_loss.drop_failed": (
        ens.replicate_loss,
        {"loss": Function(len), "drop_failed": Kind(lambda: True, lambda v: isinstance(v, bool | np.bool_))},
    ),
    "one_sigma.replicas": (
        functools.partial(ens.one_sigma, np.ones(3), np.ones(3)),
        {
            "sigma": Word("replicas", "trials"),
            "replica_losses": Numbers(lambda: np.ones((3, 4)), (3, 4), (3, 2), finite=False),
        },
    ),
    "MomentumSGD.inner": (
        lambda learning_rate, momentum: hg.OptaxSolver(hg.MomentumSGD(learning_rate, momentum), 2),
        {"learning_rate": or_function(Real(0.5, above=0)), "momentum": or_function(Real(0.5, least=0, below=1))},
    ),
    "with_num_steps": (
        hg.OptaxSolver(optax.sgd(0.1), 3).with_num_steps,
        {"num_steps": Int(3, least=1)},
    ),
}
