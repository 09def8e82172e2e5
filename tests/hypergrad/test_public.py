"""The public names: few, documented, and with options by keyword."""

import inspect
import types

import pytest

import hypergrad as hg

NAMES = sorted(name for name in vars(hg) if name[0] != "_" and not isinstance(vars(hg)[name], types.ModuleType))
# The arguments that may be given by position: the parts that a class is made of, never options.
POSITIONAL = {
    "Reverse": ("inner",),
    "Reversible": ("inner",),
    "Forward": ("inner",),
    "DrMAD": ("inner",),
    "Greedy": ("inner",),
    "OneStep": ("inner",),
    "Implicit": ("inner", "linear_solver"),
    "HOAG": ("inner", "linear_solver"),
    "ES": ("inner", "num_pairs"),
    "PES": ("inner", "truncation", "num_pairs"),
    "NRES": ("inner", "truncation", "num_pairs"),
    "Combined": ("reverse", "es"),
    "MAID": ("inner", "linear_solver"),
    "GradientSearch": ("estimator", "optimiser"),
    "RandomSearch": ("inner", "prior"),
    "SOBA": ("inner_optimiser", "linear_optimiser", "outer_optimiser"),
    "SABA": ("inner_optimiser", "linear_optimiser", "outer_optimiser", "num_batches"),
    "F2SA": ("inner_optimiser", "outer_optimiser", "multiplier"),
    "CG": ("max_steps",),
    "NormalCG": ("max_steps",),
    "MINRES": ("max_steps",),
    "GMRES": ("max_steps",),
    "Neumann": ("max_steps",),
    "Nystrom": ("rank",),
    "Dense": (),
    "OptaxSolver": ("optimiser", "num_steps"),
    "JaxoptSolver": ("solver_class",),
    "MomentumSGD": ("learning_rate", "momentum"),
}


# What users reach in modules of the library, `hg.tolerances.cubic`.
IN_MODULES = {
    hg.curvature: ("AdamDiagonal", "gauss_newton", "hessian"),
    hg.linear: ("SGD", "AbstractLinearSolver", "Identity", "LevenbergMarquardt", "LinearSolution"),
    hg.tolerances: ("cubic", "exponential", "quadratic"),
}


def test_there_are_at_most_sixty_and_each_is_documented():
    assert len(NAMES) <= 60
    assert [name for name in NAMES if not inspect.getdoc(getattr(hg, name))] == []


@pytest.mark.parametrize("module", IN_MODULES, ids=lambda module: module.__name__)
def test_names_in_modules_are_documented_and_not_exported_twice(module):
    assert all(inspect.getdoc(getattr(module, name)) for name in IN_MODULES[module])
    assert not set(IN_MODULES[module]) & set(NAMES)


@pytest.mark.parametrize("name", POSITIONAL)
def test_options_are_given_by_keyword(name):
    parameters = inspect.signature(getattr(hg, name)).parameters.values()
    found = tuple(p.name for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD)
    assert found == POSITIONAL[name]


def test_every_estimator_search_and_linear_solver_is_listed():
    kinds = (hg.AbstractEstimator, hg.AbstractSearch, hg.linear.AbstractLinearSolver, hg.AbstractInnerSolver)
    concrete = {
        name
        for name in NAMES
        if isinstance(getattr(hg, name), type)
        and issubclass(getattr(hg, name), kinds)
        and not name.startswith("Abstract")
    }
    assert concrete <= set(POSITIONAL)


def test_functions_take_the_problem_first_and_the_key_last():
    for name in NAMES:
        value = getattr(hg, name)
        methods = [value] if isinstance(value, types.FunctionType) else []
        if isinstance(value, type) and issubclass(value, (hg.AbstractEstimator, hg.AbstractSearch)):
            methods = [value.init, value.step]
        for method in methods:
            order = [p for p in inspect.signature(method).parameters if p in ("problem", "hparams", "state", "key")]
            assert order == [p for p in ("problem", "hparams", "state", "key") if p in order], (name, method)
