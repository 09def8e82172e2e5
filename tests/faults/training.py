"""The callables around training, the newest names and `hypergrad.testing` with an argument table each."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import optax

import hypergrad as hg
from hypergrad import testing
from hypergrad.testing import laws, problems

from .kinds import Bool, Function, Int, Key, Kind, Mapping, Only, Path, Real, Some, Word
from .library import CASE, HPARAMS, PROBLEM, SEARCH, state_of
from .options import OPTIONS
from .searches import INNER, OUTER, case, inner

AVERAGED = Real(0.5, least=0, below=1, optional=True)
LONGER = hg.OptaxSolver(optax.sgd(0.1), 200)
POWER = {"power_steps": Int(1, least=0), "strong_convexity": Kind(lambda: 0.5, lambda v: None)}
TESTED = {"sgd": lambda hparams: optax.sgd(0.1)}


def search(scale):
    return hg.GradientSearch(hg.Greedy(hg.OptaxSolver(optax.sgd(0.1 / scale), 1)), optax.sign_sgd(0.1))


def penalised(w, hparams, data, key):
    return jnp.mean((data[0] @ w - data[1]) ** 2) + jnp.exp(hparams) * jnp.sum(w**2)


def held_out(w, hparams, data, key):
    return jnp.mean((data[0] @ w - data[1]) ** 2)


@functools.cache
def streamed():
    """A problem whose data are rows alone."""
    rows = jnp.eye(4, 2), jnp.ones(4)
    return hg.BilevelProblem(penalised, held_out, rows, rows)


@functools.cache
def before_the_stream():
    return SEARCH.init(streamed(), jnp.zeros(2), jnp.zeros(()))


def stream():
    return [streamed().train] * 3


@functools.cache
def training():
    return hg.Training(INNER, case().problem, case().hparams, jax.random.key(0))


@functools.cache
def begun():
    return training().begin(INNER.init(case().problem, case().params, case().hparams), False)


def holdout(model):
    return jnp.sum(model**2)


def empty_or(*kinds):
    """The verdict on a sequence of which only an empty one may do."""
    return lambda value: None if value is None or (isinstance(value, kinds) and not np.size(value)) else False


def zero_or_several(value):
    """The verdict on a number of keys."""
    verdict = Int(0, least=0).judge(value)
    return False if verdict is not False and value == 1 else verdict


def some_laws(only, without):
    """Holds an estimator to some laws: `None` stands for all of them, which take a minute."""
    only = (laws.steps_are_counted,) if only is None else only
    return testing.check_estimator(hg.Reverse, only=only, without=without, examples=1, shrink=0, num_steps=2)


def one_estimator(only, **arguments):
    """Holds a solver to what an estimator asks of it: an empty selection stands for all, which take ten seconds."""
    only = ("Greedy, one step",) if isinstance(only, list | tuple | set) and not only else only
    return testing.check_inner_solver(only=only, **arguments)


def compared(found, expected, kind):
    """Compares; that numbers differ is no error of the arguments."""
    with contextlib.suppress(AssertionError):
        testing.assert_close(found, expected, kind)


RUN = {
    "holdout": Kind(lambda: holdout, lambda value: None, own=True),
    "patience": Int(2, least=1, optional=True),
}
TUNE = CASE | RUN
TUNE |= {
    "inner": Only(lambda: LONGER),
    "key": Key(),
    "budget": Int(240, least=200, optional=True),
    "scale": Real(1.0, above=0),
    "starts": Kind(lambda: [], lambda value: None if value is None or isinstance(value, list | tuple) else False),
    "projection": Function(lambda hparams: hparams, own=True),
    "callback": Function(lambda *_: True, optional=True, own=True),
    "checkpoint": Path(),
}
CALLS = {
    "tune": (hg.tune, TUNE),
    "run.options": (
        functools.partial(hg.run, SEARCH, budget=6, callback=lambda *_: True),
        {"problem": PROBLEM, "state": Only(lambda: state_of(SEARCH)), "key": Key(), **RUN},
    ),
    "run.stream": (
        functools.partial(hg.run, SEARCH, budget=6),
        {
            "problem": Only(streamed),
            "state": Only(before_the_stream),
            "key": Key(),
            "stream": Kind(stream, lambda value: None),
        },
    ),
    "OptaxSolver.average": (
        hg.OptaxSolver,
        {"optimiser": Function(lambda hparams: OUTER), "num_steps": Int(3, least=1), "average": AVERAGED},
    ),
    "JaxoptSolver.average": (
        hg.JaxoptSolver,
        {"solver_class": Only(lambda: jaxopt.GradientDescent), "maxiter": Int(3, least=1), "average": AVERAGED},
    ),
    "JaxoptSolver.proximal": (
        hg.JaxoptSolver,
        {"solver_class": Only(lambda: jaxopt.ProximalGradient), "prox": Function(jaxopt.prox.prox_none)},
    ),
    "Implicit.power": (hg.Implicit, {"inner": inner(), **POWER}),
    "HOAG.power": (hg.HOAG, {"inner": inner(), **POWER}),
    "diagnose.keys": (
        hg.diagnose,
        CASE
        | {"estimators": Only(lambda: [hg.Greedy(INNER)]), "key": Key(), "num_keys": Kind(lambda: 0, zero_or_several)},
    ),
    "curvature.AdamDiagonal": (
        hg.curvature.AdamDiagonal,
        {
            "learning_rate": Kind(lambda: 0.1, lambda v: None if callable(v) else Real(0.1, above=0).judge(v)),
            "eps": Real(0.1, above=0),
            "decay": Real(0.5, above=0, below=1),
        },
    ),
    "BilevelProblem.trainable": (
        hg.BilevelProblem,
        {
            "inner_loss": Function(problems.ridge_inner),
            "outer_loss": Function(problems.ridge_outer),
            "train": Some(lambda: case().problem.train),
            "valid": Some(lambda: case().problem.valid),
            "trainable": Some(lambda: True),
        },
    ),
    "Training": (hg.Training, {"inner": inner(), "problem": PROBLEM, "hparams": HPARAMS, "key": Key()}),
    "Training.step": (lambda t: training().step(begun(), t), {"t": Int(0, least=0)}),
    "testing.check_estimator": (
        functools.partial(testing.check_estimator, only=(laws.steps_are_counted,)),
        {
            "make": Function(hg.Reverse, own=True),
            "claim": Only(lambda: testing.Claim.APPROXIMATE),
            "optimisers": Mapping(TESTED),
            "num_steps": Int(2, least=1, most=10_000),
            "examples": Int(1, least=1, most=10_000),
            "loosened": Real(1.0, above=0),
            "fail_fast": Bool(),
            "shrink": Int(0, least=0, most=10_000),
        },
    ),
    "testing.check_estimator.only": (
        some_laws,
        {
            "only": Kind(lambda: [], empty_or(list, tuple, set)),
            "without": Kind(lambda: (), empty_or(list, tuple, set)),
        },
    ),
    "testing.check_inner_solver": (
        one_estimator,
        {
            "make": Function(lambda steps: hg.OptaxSolver(optax.sgd(0.1), steps), own=True),
            "case": Kind(case, lambda value: value is None),
            "num_steps": Int(2, least=1, most=10_000),
            "linear": Bool(),
            "only": Kind(lambda: ("Greedy, one step",), empty_or(list, tuple, set)),
        },
    ),
    "testing.assert_close": (
        compared,
        {
            "found": Some(lambda: jnp.ones(2)),
            "expected": Some(lambda: jnp.ones(2)),
            "kind": Word("same", "gradient", "difference", "solved"),
        },
    ),
    "testing.loosened": (testing.loosened, {"factor": Real(2.0, above=0)}),
    "testing.units_of_the_losses": (
        testing.units_of_the_losses,
        {"make": Function(search, own=True), "case": Only(case), "steps": Int(2, least=1, most=10_000)},
    ),
}


def calls():
    """`{name: (callable, {argument: Kind})}`."""
    return CALLS | OPTIONS
