"""The public callables of the library with an argument table each."""

import functools

import jax.numpy as jnp
import jaxopt
import optax

import hypergrad as hg

from .kinds import Bool, Function, Int, Key, Kind, Only, Path, Real, Some, Word
from .searches import INNER, LINEAR_SOLVER, OUTER, SEARCH_CLASSES, case, inner, or_function

STATES: dict[str, hg.SearchState] = {}
SEARCH = hg.GradientSearch(hg.Reverse(INNER), OUTER)


PROBLEM = Only(lambda: case().problem)
PARAMS, HPARAMS = Some(lambda: case().params), Some(lambda: case().hparams)
CASE = {"problem": PROBLEM, "params": PARAMS, "hparams": HPARAMS}
WARM = {"inner": inner(), "warm_start": Bool()}
SIGMA = Kind(lambda: 0.1, lambda value: Real(0.1, above=0).judge(value) or None)  # also a pytree of numbers
EVOLUTION = {"inner": inner(), "num_pairs": Int(2, least=1), "sigma": SIGMA}
ONLINE = EVOLUTION | {
    "truncation": Kind(lambda: 1, lambda value: Int(1, 1, 3).judge(value) and value != 2),
    "final": Bool(),
}
LINEAR = {"max_steps": Int(3, least=1), "damping": Real(0.1, least=0), "rtol": Real(0.0, least=0)}


def loss(w, hparams, data, key):
    return jnp.mean((data["x"] @ w - data["y"]) ** 2)


def state_of(search):
    if (name := type(search).__name__) not in STATES:
        STATES[name] = search.init(case().problem, case().params, case().hparams)
    return STATES[name]


def estimator_calls(estimator):
    name = type(estimator).__name__
    state = lambda: estimator.init(case().problem, case().params, case().hparams)
    return {
        f"{name}.init": (estimator.init, CASE),
        f"{name}.step": (
            estimator.step,
            {"problem": PROBLEM, "hparams": HPARAMS, "state": Only(functools.cache(state)), "key": Key()},
        ),
    }


def search_calls(search):
    name = type(search).__name__
    step = {"problem": PROBLEM, "state": Only(lambda: state_of(search)), "key": Key()}
    return {f"{name}.init": (search.init, CASE), f"{name}.step": (search.step, step)}


def linear_calls(solver):
    args = {"matvec": Function(lambda v, *_: v), "b": Some(lambda: jnp.ones(2)), "rtol": Real(0.0, least=0)}
    return {f"{type(solver).__name__}.solve": (solver.solve, args)}


ESTIMATORS = [
    hg.Reverse(INNER),
    hg.Forward(INNER),
    hg.DrMAD(INNER),
    hg.Greedy(INNER),
    hg.Implicit(INNER),
    hg.HOAG(INNER),
    hg.ES(INNER, 2),
    hg.PES(INNER, 1, 2),
    hg.NRES(INNER, 1, 2),
    hg.Combined(hg.Reverse(INNER), hg.ES(INNER, 2)),
]
SEARCHES = [
    SEARCH,
    hg.MAID(INNER),
    hg.SOBA(OUTER, OUTER, OUTER),
    hg.SABA(OUTER, OUTER, OUTER, 2),
    hg.F2SA(OUTER, OUTER, 10.0),
    hg.RandomSearch(INNER, lambda key: case().hparams),
]
CLASSES = {
    "BilevelProblem": (
        hg.BilevelProblem,
        {
            "inner_loss": Function(loss),
            "outer_loss": Function(loss),
            "train": Some(lambda: case().problem.train),
            "valid": Some(lambda: case().problem.valid),
        },
    ),
    "Batches": (
        hg.Batches,
        {
            "data": Some(lambda: jnp.ones((4, 2))),
            "size": Int(2, 1, 4),
            "order": Word("epochs", "replacement", "all"),
            "num_batches": Int(1, least=1, optional=True),
        },
    ),
    "OptaxSolver": (hg.OptaxSolver, {"optimiser": Function(optax.sgd), "num_steps": Int(3, least=1)}),
    "JaxoptSolver": (
        hg.JaxoptSolver,
        {"solver_class": Only(lambda: jaxopt.LBFGS), "maxiter": Int(3, least=1), "tol": Real(1e-3, least=0)},
    ),
    "Reverse": (
        hg.Reverse,
        WARM
        | {
            "checkpoints": Kind(lambda: "sqrt", lambda v: v is None or (None if Int(2, least=1).judge(v) else False)),
            "horizon": Int(2, 1, 3, optional=True),
            "storage": Some(lambda: jnp.float16),
        },
    ),
    "DrMAD": (
        hg.DrMAD,
        WARM
        | {"knots": Int(2, 1, 3), "max_growth": Real(1e3, above=0), "cubic": Bool(), "storage": Some(lambda: None)},
    ),
    "Forward": (hg.Forward, WARM),
    "Greedy": (hg.Greedy, WARM | {"decay": Real(0.5, least=0, most=1)}),
    "Implicit": (
        hg.Implicit,
        WARM
        | {
            "linear_solver": LINEAR_SOLVER,
            "atol": Real(0.0, least=0),
            "curvature": Function(hg.curvature.hessian),
            "preconditioner": Function(lambda h: 1.0, optional=True),
        },
    ),
    "ES": (hg.ES, EVOLUTION | {"batch_size": Int(2, least=1, optional=True), "warm_start": Bool()}),
    "PES": (hg.PES, ONLINE),
    "NRES": (hg.NRES, ONLINE),
    "Combined": (
        hg.Combined,
        {"reverse": Some(lambda: hg.Reverse(INNER)), "es": Some(lambda: hg.ES(INNER, 2))},
    ),
    "HOAG": (
        hg.HOAG,
        {
            "inner": inner(),
            "linear_solver": LINEAR_SOLVER,
            "schedule": Function(hg.tolerances.cubic()),
            "curvature": Function(hg.curvature.hessian),
        },
    ),
    "OneStep": (hg.OneStep, WARM),
    "Reversible": (
        hg.Reversible,
        {
            "inner": Only(lambda: hg.OptaxSolver(hg.MomentumSGD(0.1, 0.9), 3)),
            "exact": Bool(),
            "rtol": Real(0.1, above=0, below=1),
            "min_momentum": Real(0.5, above=0, below=1, optional=True),
        },
    ),
    "ErrorCheck": (hg.ErrorCheck, {"directions": Int(2, least=1), "every": Int(2, least=1)}),
    "shrink_to_mean": (hg.projections.shrink_to_mean, {"share": Real(0.5, least=0, most=1)}),
    "MomentumSGD": (
        hg.MomentumSGD,
        {
            "learning_rate": or_function(Real(0.5, above=0)),
            "momentum": or_function(Real(0.5, least=0, below=1)),
        },
    ),
    "CG": (hg.CG, LINEAR),
    "NormalCG": (hg.NormalCG, LINEAR),
    "MINRES": (hg.MINRES, LINEAR),
    "GMRES": (hg.GMRES, LINEAR),
    "Neumann": (
        hg.Neumann,
        LINEAR | {"step_size": Real(0.5, above=0, optional=True), "power_steps": Int(5, least=1)},
    ),
    "Nystrom": (
        hg.Nystrom,
        {
            "rank": Int(2, least=1),
            "damping": Real(0.1, above=0, optional=True),
            "relative_damping": Real(0.1, above=0),
            "seed": Int(0, least=0),
        },
    ),
    "Dense": (hg.Dense, {"damping": Real(0.1, least=0)}),
    "SGD": (
        hg.linear.SGD,
        {
            "max_steps": Int(3, least=1),
            "damping": Real(0.1, least=0),
            "step_size": Real(0.5, above=0, optional=True),
            "power_steps": Int(5, least=1),
        },
    ),
    "LevenbergMarquardt": (
        hg.linear.LevenbergMarquardt,
        {"max_steps": Int(3, least=1), "max_tries": Int(3, least=1), "rtol": Real(1e-3, least=0)},
    ),
    "Identity": (hg.linear.Identity, {"scale": Real(0.5, above=0)}),
    "AdamDiagonal": (
        hg.curvature.AdamDiagonal,
        {
            "learning_rate": or_function(Real(0.5, above=0)),
            "eps": Real(1e-8, above=0),
            "decay": Real(0.9, above=0, below=1),
        },
    ),
    "GaussNewton": (
        hg.GaussNewton,
        {"outputs": Function(len), "loss": Function(loss), "penalty": Function(loss, optional=True)},
    ),
    "Budget": (hg.Budget, {"iterations": Int(3, least=1)}),
    "Budget.gradients": (hg.Budget, {"gradients": Int(3, least=1)}),
    "Budget.epochs": (hg.Budget, {"epochs": Real(3.0, above=0)}),
    "Budget.seconds": (hg.Budget, {"seconds": Real(3.0, above=0)}),
}
FUNCTIONS = {
    "minibatch": (hg.minibatch, {"key": Key(), "data": Some(lambda: jnp.ones((4, 2))), "size": Int(2, least=1)}),
    "epoch_batch": (
        hg.epoch_batch,
        {"key": Key(), "t": Int(0, least=0), "data": Some(lambda: jnp.ones((4, 2))), "size": Int(2, 1, 4)},
    ),
    "value_and_hypergrad": (
        lambda problem, estimator, hparams, params, key: hg.value_and_hypergrad(problem, estimator)(
            hparams, params, key
        ),
        CASE | {"estimator": Only(lambda: hg.Greedy(INNER)), "key": Key()},
    ),
    "evaluate": (hg.evaluate, CASE | {"inner": inner(), "key": Key()}),
    "spread": (
        hg.spread,
        CASE | {"estimator": Only(lambda: hg.Greedy(INNER)), "key": Key(), "num_keys": Int(2, least=2, most=9)},
    ),
    "diagnose": (
        hg.diagnose,
        CASE
        | {
            "estimators": Only(lambda: [hg.Greedy(INNER)]),
            "key": Key(),
            "num_steps": Int(2, least=1, most=10**6, optional=True),
        },
    ),
    "fewest_knots": (
        hg.fewest_knots,
        CASE | {"estimator": Only(lambda: hg.DrMAD(INNER)), "key": Key(), "cosine": Real(0.9, above=0, most=1)},
    ),
    "run": (
        hg.run,
        {
            "search": Only(lambda: SEARCH),
            "problem": PROBLEM,
            "state": Only(lambda: state_of(SEARCH)),
            "key": Key(),
            "budget": Int(3, least=1),
            "chunk": Int(1, least=1, optional=True),
            "callback": Function(lambda *_: True, optional=True, own=True),
            "progress": Bool(),
            "checkpoint": Path(),
            "every": Real(30.0, least=0, optional=True),
            "every_steps": Int(1, least=1, optional=True),
            "keep": Function(lambda record: record.value),
            "throw": Bool(),
        },
    ),
}


def calls():
    """`{name: (callable, {argument: Kind})}`."""
    found = CLASSES | SEARCH_CLASSES | FUNCTIONS
    for estimator in ESTIMATORS:
        found |= estimator_calls(estimator)
    for search in SEARCHES:
        found |= search_calls(search)
    for solver in (hg.CG(), hg.NormalCG(), hg.MINRES(), hg.GMRES(), hg.Neumann(), hg.Nystrom(), hg.Dense()):
        found |= linear_calls(solver)
    found["OptaxSolver.init"] = (INNER.init, CASE)
    return found
