"""Ours, plain JAX, and the libraries on JAX, each as its users call it."""

import warnings
from collections.abc import Callable
from functools import partial

import jax
import jaxopt
import optax
from jaxopt.linear_solve import solve_cg

import hypergrad as hg

from .. import bare
from ..measure import arguments
from ..problems import MOMENTUM, Benchmark
from .call import Peer, compiled

TOL = 1e-6  # gradient norm at which L-BFGS stops
LINEAR_STEPS, LINEAR_RTOL = 20, 1e-5  # the tolerance is that of CG in JAX, which jaxopt leaves as it is


def losses(case: Benchmark) -> tuple[Callable, Callable]:
    """Returns the inner loss of weights and hyperparameters and the outer loss of weights; data are constants."""
    problem = case.problem
    inner = lambda w, hparams: problem.inner_loss(w, hparams, problem.train, None)
    return inner, lambda w, hparams: problem.outer_loss(w, hparams, problem.valid, None)


def ours(case: Benchmark, estimator: hg.AbstractEstimator, exact: bool = True) -> Peer:
    """Returns one of our estimators, from the first weights."""
    problem, key = case.problem, jax.random.key(0)
    state = estimator.init(problem, case.params, case.hparams)

    def hypergradient(hparams, state, train, valid):
        again = hg.BilevelProblem(problem.inner_loss, problem.outer_loss, train, valid)
        return estimator.step(again, hparams, state, key)[0].hypergradient

    return compiled(hypergradient, case.hparams, state, problem.train, problem.valid, exact=exact)


def training(case: Benchmark) -> hg.AbstractInnerSolver:
    """Returns SGD with momentum."""
    return hg.OptaxSolver(optax.sgd(case.learning_rate, MOMENTUM), case.num_steps)


def by_hand(case: Benchmark, make: Callable[[Benchmark], Callable]) -> Peer:
    """Returns a recursion written by hand."""
    function = make(case)
    return compiled(lambda *args: function(*args)[1], *arguments(case))


def implicit_of_lbfgs(case: Benchmark) -> Peer:
    """Returns the implicit hypergradient where L-BFGS ends."""
    inner = hg.JaxoptSolver(jaxopt.LBFGS, maxiter=case.num_steps)
    return ours(case, hg.Implicit(inner, hg.CG(LINEAR_STEPS, rtol=LINEAR_RTOL), atol=TOL), exact=False)


def jaxopt_sgd(case: Benchmark, implicit: bool) -> Peer:
    """Returns `jax.grad` through `jaxopt.OptaxSolver(...).run`."""
    inner, outer = losses(case)
    how = {"implicit_diff_solve": partial(solve_cg, maxiter=LINEAR_STEPS)} if implicit else {"unroll": True}
    optimiser = optax.sgd(case.learning_rate, MOMENTUM)
    solver = jaxopt.OptaxSolver(inner, optimiser, maxiter=case.num_steps, tol=0.0, implicit_diff=implicit, **how)
    return compiled(
        jax.grad(lambda hparams: outer(solver.run(case.params, hparams).params, hparams)),
        case.hparams,
        exact=not implicit,
    )


def jaxopt_lbfgs(case: Benchmark) -> Peer:
    """Returns `jax.grad` through `jaxopt.LBFGS(...).run`, by its implicit derivative."""
    inner, outer = losses(case)
    solve = partial(solve_cg, maxiter=LINEAR_STEPS)
    solver = jaxopt.LBFGS(inner, maxiter=case.num_steps, tol=TOL, implicit_diff_solve=solve)
    gradient = jax.grad(lambda hparams: outer(solver.run(case.params, hparams).params, hparams))
    return compiled(gradient, case.hparams, exact=False)


def optimistix_unrolled(case: Benchmark) -> Peer:
    """Returns `jax.grad` through `optimistix.minimise` with checkpoints."""
    import optimistix

    inner, outer = losses(case)
    solver = optimistix.OptaxMinimiser(optax.sgd(case.learning_rate, MOMENTUM), rtol=0.0, atol=0.0)
    options = {"max_steps": case.num_steps, "throw": False, "adjoint": optimistix.RecursiveCheckpointAdjoint()}

    def loss(hparams):
        return outer(optimistix.minimise(inner, solver, case.params, args=hparams, **options).value, hparams)

    return compiled(jax.grad(loss), case.hparams)


def gradhpo_greedy(case: Benchmark) -> Peer:
    """Returns what gradhpo's greedy optimiser with T unrolled steps takes off the hyperparameters, at a rate of 1."""
    import gradhpo

    problem = case.problem
    inner = lambda w, hparams, batch: problem.inner_loss(w, hparams, batch, None)
    outer = lambda w, hparams, batch: problem.outer_loss(w, hparams, batch, None)
    options = {"inner_optimizer": optax.sgd(case.learning_rate), "outer_optimizer": optax.sgd(1.0)}
    optimiser = gradhpo.GreedyOptimizer(**options, unroll_steps=case.num_steps)
    state = optimiser.init(case.params, case.hparams)

    def moved(hparams):
        after = optimiser.step(state, problem.train, problem.valid, inner, outer)
        return jax.tree.map(lambda old, new: old - new, hparams, after.hyperparams)

    return Peer(lambda: moved(case.hparams), exact=False)


def peers(case: Benchmark) -> dict[str, Callable[[], Peer]]:
    """Returns all that fit the problem, by name, to be made when it is their turn."""
    inner = training(case)
    cg = hg.Implicit(inner, hg.CG(LINEAR_STEPS, rtol=LINEAR_RTOL))
    found: dict[str, Callable[[], Peer]] = {
        "ours: Reverse(remat=False)": lambda: ours(case, hg.Reverse(inner, remat=False)),
        "ours: Reverse": lambda: ours(case, hg.Reverse(inner)),
        "ours: Reverse, sqrt(T)": lambda: ours(case, hg.Reverse(inner, checkpoints="sqrt")),
        "ours: Implicit CG(20)": lambda: ours(case, cg, exact=False),
        "JAX: lax.scan": lambda: by_hand(case, bare.reverse_unrolled),
        "JAX: lax.scan, checkpointed": lambda: by_hand(case, bare.reverse_remat),
        "jaxopt: unroll": lambda: jaxopt_sgd(case, implicit=False),
        "jaxopt: implicit CG(20)": lambda: jaxopt_sgd(case, implicit=True),
        "optimistix: checkpoints": lambda: optimistix_unrolled(case),
    }
    if case.convex:
        found["ours: L-BFGS, Implicit CG(20)"] = lambda: implicit_of_lbfgs(case)
        found["jaxopt: L-BFGS, implicit CG(20)"] = lambda: jaxopt_lbfgs(case)
    if case.name == "P3":
        found["gradhpo: greedy, T steps"] = lambda: gradhpo_greedy(case)  # ten seconds to trace, and no exact one
    return {name: quiet(make) for name, make in found.items()}


def quiet(make: Callable[[], Peer]) -> Callable[[], Peer]:
    """Silences the warnings of old libraries."""

    def made() -> Peer:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return make()

    return made
