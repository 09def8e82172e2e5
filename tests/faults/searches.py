"""The constructors of searches and schedules with an argument table each."""

import functools

import optax

import hypergrad as hg
from hypergrad.testing.problems import ridge

from .kinds import Function, Int, Kind, Only, Real

INNER = hg.OptaxSolver(optax.sgd(0.1), 3)
OUTER = optax.sgd(0.1)
LINEAR_SOLVER = Kind(lambda: hg.CG(3), lambda value: None if isinstance(value, hg.CG) else False)
OPTIMISER = Only(lambda: OUTER)
PROJECTION = Function(lambda hparams: hparams)


@functools.cache
def case():
    return ridge(num_rows=4, num_features=2)


def inner(right=INNER) -> Kind:
    return Only(lambda: right)


def or_function(kind):
    """A function will do too."""
    return Kind(kind.right, lambda value: None if callable(value) else kind.judge(value))


SEARCH_CLASSES = {
    "GradientSearch": (
        hg.GradientSearch,
        {"estimator": Only(lambda: hg.Reverse(INNER)), "optimiser": OPTIMISER, "projection": PROJECTION},
    ),
    "RandomSearch": (hg.RandomSearch, {"inner": inner(), "prior": Function(lambda key: case().hparams)}),
    "MAID": (
        hg.MAID,
        {
            "inner": inner(),
            "linear_solver": LINEAR_SOLVER,
            "strong_convexity": or_function(Real(0.5, above=0, optional=True)),
            "rtol": Real(0.1, above=0, below=1),
            "step_size": Real(0.1, above=0, optional=True),
            "shrink": Real(0.5, above=0, below=1),
            "grow": Real(1.25, least=1),
            "accuracy": Real(0.5, above=0, below=0.9),
            "decrease": Real(0.1, above=0, below=0.5),
            "power_steps": Int(1, least=1),
            "projection": PROJECTION,
        },
    ),
    "SOBA": (hg.SOBA, {f"{n}_optimiser": OPTIMISER for n in ("inner", "linear", "outer")} | {"projection": PROJECTION}),
    "SABA": (
        hg.SABA,
        {f"{n}_optimiser": OPTIMISER for n in ("inner", "linear", "outer")}
        | {"num_batches": Int(2, least=1), "num_valid_batches": Int(2, least=1), "projection": PROJECTION},
    ),
    "F2SA": (
        hg.F2SA,
        {
            "inner_optimiser": OPTIMISER,
            "outer_optimiser": OPTIMISER,
            "multiplier": or_function(Real(10.0, above=0)),
            "projection": PROJECTION,
        },
    ),
    "adaptive_step": (hg.adaptive_step, {"shrink": Real(0.95, above=0, below=1), "grow": Real(2.0, above=1)}),
    "tolerances.exponential": (
        hg.tolerances.exponential,
        {"initial": Real(0.1, above=0), "rate": Real(0.9, above=0, below=1)},
    ),
    "tolerances.quadratic": (hg.tolerances.quadratic, {"initial": Real(0.1, above=0)}),
    "tolerances.cubic": (hg.tolerances.cubic, {"initial": Real(0.1, above=0)}),
}
