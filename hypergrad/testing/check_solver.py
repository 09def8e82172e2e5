"""One call that holds an inner solver to the laws."""

from collections.abc import Callable
from typing import Any

import jax

import hypergrad as hg

from ..ground.checks import Rule, boolean, checked, function, instance, integer
from . import laws, solver_laws
from .problems import Case, quadratic, ridge

MakeSolver = Callable[[int], hg.AbstractInnerSolver]  # number of steps -> inner solver


def exact_estimators(make: MakeSolver, num_steps: int) -> dict[str, hg.AbstractEstimator]:
    """Returns estimators whose hypergradient should be the derivative of the value of their next step, by name."""
    inner = make(num_steps)
    return {
        "Reverse": hg.Reverse(inner),
        "Reverse, warm": hg.Reverse(inner, warm_start=True),
        "DrMAD, every knot, warm": hg.DrMAD(inner, knots=num_steps, warm_start=True),
        "Greedy, one step": hg.Greedy(make(1)),
        "Forward": hg.Forward(inner),
    }


def _names(values: Any) -> tuple[str, ...]:
    """Returns texts as a tuple."""
    if not isinstance(values, list | tuple | set) or not all(isinstance(name, str) for name in values):
        raise TypeError
    return tuple(values)


@checked(
    function("make", "from the number of steps to an inner solver"),
    instance("case", Case, "a Case such as problems.ridge()", optional=True),
    integer("num_steps", least=1, most=10_000),
    boolean("linear"),
    Rule("only", "names of estimators", _names),
)
def check_inner_solver(
    make: MakeSolver, *, case: Case | None = None, num_steps: int = 4, linear: bool = False, only: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """Holds an inner solver, of your own optimiser for example, to what every estimator asks of it, in float64.

        check_inner_solver(lambda steps: hg.OptaxSolver(my_optimiser, steps))

    From a new, a used and a resumed state the hypergradients of `exact_estimators` are the derivatives of the value of
    the next step.

    **Arguments**

    - `make`: a function from the number of steps to the inner solver.
    - `case`: the problem, `problems.ridge()` by default; give one with the hyperparameters that the optimiser reads.
    - `linear`: whether updates are linear in gradients and weights; then DrMAD must be exact on a quadratic problem,
      which asks that its integers, flags and keys are replayed.
    - `only`: names of the estimators to try, all by default.

    Returns the names that were tried. *Cost*: some seconds per estimator, most of it compilation.

    **Raises** `AssertionError` naming the estimator, with the derivatives found and expected.
    """
    with jax.enable_x64(True):
        case = ridge() if case is None else case
        estimators = exact_estimators(make, num_steps)
        names = only or tuple(estimators)
        if unknown := sorted(set(names) - set(estimators)):
            raise ValueError(f"only must be among {', '.join(estimators)}, got {', '.join(unknown)}")
        for name in names:
            _named(name, solver_laws.derivative_from_any_state, estimators[name], case)
        if linear:
            _named("DrMAD, a straight line", laws.is_reverse, hg.DrMAD, make(6), quadratic())
            names = (*names, "DrMAD, a straight line")
    return names


def _named(name: str, law: Callable[..., None], *arguments: Any) -> None:
    try:
        law(*arguments)
    except AssertionError as error:
        raise AssertionError(f"{name}: {law.__name__}: {error}") from error
