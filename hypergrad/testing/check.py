"""One call that holds an estimator to the laws."""

import contextlib
import dataclasses
import enum
import random
from collections.abc import Callable, Collection, Mapping
from typing import Any

import hypothesis
import jax
import optax
from hypothesis.strategies import SearchStrategy

from ..ground.checks import Rule, boolean, checked, function, instance, integer, real
from . import laws, solver_laws
from .laws import Make
from .problems import AVERAGES, SIZES, TRAINING, Case, logistic, net, phasors, quadratic, ridge, scheduled, tuned
from .strategies import Example, seeds_of, simpler
from .tolerances import loosened as with_tolerances


class Claim(enum.Enum):
    """The claim of an estimator, which decides the laws that apply."""

    EXACT = enum.auto()  # the derivative of its value, through every training step
    QUADRATIC = enum.auto()  # that where Hessian and mixed derivative are constant, as DrMAD
    STATIONARY = enum.auto()  # the derivative of the solved inner problem, if training solves it, as Implicit
    UNBIASED = enum.auto()  # random directions: exact on average over keys
    APPROXIMATE = enum.auto()  # nothing about the numbers; only what every hypergradient obeys


Pairs = tuple[tuple[Callable[..., Case], str], ...]  # a problem and the name of an optimiser


@dataclasses.dataclass(frozen=True)
class Law:
    """A function of `laws`, the claims it belongs to, and the pairs it is tried on.

    `often`: on many seeds; `once`: on one. `solved`: with enough steps to solve the inner problem. `remake`: the law
    takes `make` and the inner solver instead of the estimator.
    """

    law: Callable[..., None]
    claims: frozenset[Claim]
    often: Pairs = ()
    once: Pairs = ()
    solved: bool = False
    remake: bool = False

    def __str__(self) -> str:
        return self.law.__name__

    def hold(self, make: Make, example: Example) -> None:
        """Raises where the law is broken."""
        if self.remake:
            self.law(make, example.inner, example.case)
        else:
            self.law(make(example.inner), example.case)


EVERY = frozenset(Claim)
REPEATABLE = EVERY - {Claim.UNBIASED}  # the same direction whatever the form of the hyperparameters
EXACT, QUADRATIC = frozenset({Claim.EXACT}), frozenset({Claim.QUADRATIC})
STATIONARY, UNBIASED = frozenset({Claim.STATIONARY}), frozenset({Claim.UNBIASED})
USUAL = ((ridge, "momentum"),)
SOLVED = ((quadratic, "sgd"), (ridge, "sgd"), (logistic, "sgd"))
AVERAGED = (ridge, "averaged")
UNROLLED = ((ridge, "momentum"), (ridge, "adam"), (scheduled, "learned rates"))
CONTRACT = (
    Law(laws.finite_differences, EXACT, UNROLLED, ((net, "adam"), (ridge, "exponential schedule"), AVERAGED)),
    Law(
        laws.plain_scan,
        EXACT,
        once=((ridge, "sgd"), (ridge, "adam"), (net, "momentum"), (net, "adam")),
        remake=True,
    ),
    Law(
        laws.is_reverse,
        QUADRATIC,
        ((quadratic, "sgd"), (quadratic, "momentum"), (quadratic, "accumulation")),
        ((quadratic, "noise"), (quadratic, "averaged")),
        remake=True,
    ),
    Law(laws.is_reverse_on_average, UNBIASED, once=USUAL, remake=True),
    Law(laws.closed_form, STATIONARY, SOLVED, (AVERAGED,), solved=True),
    Law(laws.chain_rule, REPEATABLE, USUAL),
    Law(laws.any_pytree, REPEATABLE, USUAL),
    Law(laws.constants_and_scale, EVERY, USUAL),
    Law(laws.scale_of_the_inner_loss, STATIONARY, ((ridge, "sgd"),), solved=True),
    Law(laws.unused_is_zero, REPEATABLE, USUAL),
    Law(laws.order_of_rows, EVERY, USUAL),
    Law(laws.order_of_weights, REPEATABLE, USUAL),
    Law(laws.batched_is_one_by_one, EVERY, once=((ridge, "momentum"), (net, "momentum"))),
    Law(laws.compiled_is_not_compiled, EVERY, once=((ridge, "adam"),)),
    Law(laws.float32_is_near_float64, REPEATABLE, once=USUAL),
    Law(laws.state_is_a_fixed_point, EVERY, once=((ridge, "adam"), (net, "adam"), AVERAGED)),
    Law(laws.value_is_measured, EVERY, USUAL),
    Law(laws.steps_are_counted, EVERY, once=USUAL),
    Law(laws.same_call_same_bits, EVERY, once=USUAL),
    Law(solver_laws.derivative_from_any_state, EXACT, once=((ridge, "adam"), (tuned, "injected rate"), AVERAGED)),
    Law(solver_laws.unused_is_refused, EVERY, once=USUAL),
    Law(solver_laws.flat_is_refused, REPEATABLE, once=USUAL),
    Law(solver_laws.flat_loss_is_refused, REPEATABLE, once=USUAL),
    Law(solver_laws.unseen_is_refused, STATIONARY, once=USUAL, remake=True),
    Law(solver_laws.forgotten_is_refused, REPEATABLE, once=USUAL, remake=True),
    Law(solver_laws.complex_weights, EXACT, once=((phasors, "conjugate"),)),
    Law(solver_laws.complex_closed_form, STATIONARY, once=((phasors, "conjugate"),), solved=True),
    Law(solver_laws.kinks_are_flagged, STATIONARY, once=((ridge, "sgd"),), solved=True, remake=True),
    Law(solver_laws.half_precision, REPEATABLE, once=USUAL, remake=True),
    Law(solver_laws.measured_error, REPEATABLE, once=((net, "momentum"),), remake=True),
)
SOLVED_STEPS = 4000


class BrokenLawsError(AssertionError):
    """Some laws do not hold. `broken` is a tuple of `Broken`; the message says all that they say."""

    def __init__(self, make: Make, broken: tuple["Broken", ...], tried: int):
        name = getattr(make, "__name__", repr(make))
        super().__init__(f"{name} breaks {len(broken)} of {tried} laws\n" + "\n".join(map(str, broken)))
        self.broken = broken


@dataclasses.dataclass(frozen=True)
class Broken:
    """A law that was broken, the smallest example that was found, and what was raised there."""

    law: Law
    example: Example
    error: Exception

    def __str__(self) -> str:
        text = str(self.error) if isinstance(self.error, AssertionError) else repr(self.error)
        meaning = (self.law.law.__doc__ or "").partition("\n")[0]
        return f"\n{self.law}: {meaning}\n on {self.example}\n" + "\n".join(f"  {line}" for line in text.splitlines())


def _laws(values: Any) -> tuple[Callable[..., None], ...]:
    """Returns laws, which are functions, as a tuple."""
    if not isinstance(values, list | tuple | set | frozenset):
        raise TypeError
    if not all(law in LAWS for law in values):
        raise ValueError
    return tuple(values)


def _optimisers(values: Any) -> Mapping[str, Any]:
    """Returns functions from hyperparameters to optimisers, or optimisers, by name."""
    kinds = (optax.GradientTransformation, optax.MultiSteps)
    if not isinstance(values, Mapping) or not all(callable(one) or isinstance(one, kinds) for one in values.values()):
        raise TypeError
    found: Mapping[str, Any] = values
    return found


LARGEST = 10_000  # of what costs time at every law
LAWS = {law.law for law in CONTRACT}
SOME_LAWS = "functions of hypergrad.testing.laws or solver_laws"


@checked(
    function("make", "from an inner solver to an estimator, such as its class"),
    instance("claim", Claim, "a Claim such as Claim.EXACT"),
    Rule("optimisers", "a dictionary from names to functions, such as problems.TRAINING", _optimisers),
    integer("num_steps", least=1, most=LARGEST),
    integer("examples", least=1, most=LARGEST),
    real("loosened", above=0),
    Rule("only", SOME_LAWS, _laws, optional=True),
    Rule("without", SOME_LAWS, _laws),
    boolean("fail_fast"),
    integer("shrink", least=0, most=LARGEST),
)
def check_estimator(
    make: Make,
    *,
    claim: Claim = Claim.APPROXIMATE,
    optimisers: Mapping[str, Any] = TRAINING,
    num_steps: int = 6,
    examples: int = 5,
    loosened: float = 1.0,
    only: Collection[Callable[..., None]] | None = None,
    without: Collection[Callable[..., None]] = (),
    fail_fast: bool = False,
    shrink: int = 12,
) -> tuple[str, ...]:
    """Holds an estimator to every law of its claim, in float64, on problems of a few numbers.

        check_estimator(MyEstimator, claim=Claim.EXACT)

    **Arguments**

    - `make`: the estimator's class, or a function, from an inner solver to the estimator.
    - `claim`: what it claims to compute; see `Claim`.
    - `optimisers`: those to train with, by name, if it cannot take all of `problems.TRAINING`; the first stands in for
      the others.
    - `num_steps`: training steps T, where the inner problem need not be solved.
    - `examples`: random problems per law, where they cost no new compilation.
    - `loosened`: a factor on every tolerance, for estimators that difference numerically.
    - `only`, `without`: functions of `hypergrad.testing.laws` to try alone, or to leave out.
    - `fail_fast`: stop at the first law that is broken.
    - `shrink`: examples tried to find a smaller one for every broken law, each compiled anew; 0 is quick.

    Returns the laws that hold. *Cost*: 10 to 40 seconds, most of it compilation.

    **Raises** `BrokenLawsError`, an `AssertionError`, with every broken law, the error measured and the smallest
    problem that hypothesis found; `ValueError` where no law is left to try.
    """
    if not optimisers:
        raise ValueError("optimisers is empty: give one to train with")
    chosen = [
        law for law in CONTRACT if claim in law.claims and law.law not in without and (only is None or law.law in only)
    ]
    if not chosen:
        raise ValueError(f"no law of {claim} is left to try: check the arguments only and without")
    broken: list[Broken] = []
    with jax.enable_x64(True), with_tolerances(loosened):
        for law in chosen:
            found = _first_broken(law, make, optimisers, num_steps, examples, shrink)
            broken += [found] if found else []
            if broken and fail_fast:
                break
    if broken:
        raise BrokenLawsError(make, tuple(broken), len(chosen)) from broken[0].error
    return tuple(map(str, chosen))


def _first_broken(
    law: Law, make: Make, optimisers: Mapping[str, Any], num_steps: int, examples: int, shrink: int
) -> Broken | None:
    """Returns the law broken on the smallest example that was found, or nothing."""
    steps, first = SOLVED_STEPS if law.solved else num_steps, next(iter(optimisers))
    times = {pair: examples for pair in law.often} | dict.fromkeys(law.once, 1)
    for (problem, name), most in times.items():
        if name not in optimisers and (problem is scheduled or name in AVERAGES):
            continue  # no other optimiser reads its rates, and not every estimator takes an average
        example = Example(problem, 0, SIZES[problem][-1], name if name in optimisers else first, steps, optimisers)
        broken = _find(seeds_of(example, vary=most > 1), law, make, most)
        if broken:
            fewer = [steps] if law.solved else sorted({1, min(2, steps), steps})
            smaller = _find(simpler(broken.example, fewer), law, make, shrink, type(broken.error)) if shrink else None
            return smaller or broken
    return None


def _find(
    strategy: SearchStrategy[Example], law: Law, make: Make, most: int, kind: type[Exception] = Exception
) -> Broken | None:
    """Returns the law broken with an error of this kind, on the smallest of at most `most` examples of hypothesis."""
    tried: dict[str, Broken | None] = {}  # its shrinking would go on for long, and every new size is compiled
    last: list[Broken] = []

    def breaks(example: Example) -> bool:
        if str(example) not in tried:
            if len(tried) == most:
                return False
            tried[str(example)] = _tried(law, make, example)
        found = tried[str(example)]
        if found is None or not isinstance(found.error, kind):
            return False
        last[:] = [found]
        return True

    settings = hypothesis.settings(max_examples=most, deadline=None, database=None, derandomize=True)
    with contextlib.suppress(hypothesis.errors.NoSuchExample):
        hypothesis.find(strategy, breaks, settings=settings, random=random.Random(0))
    return last[0] if last else None


def _tried(law: Law, make: Make, example: Example) -> Broken | None:
    try:
        law.hold(make, example)
    except Exception as error:  # also what a user's estimator raises: it is reported with the law
        return Broken(law, example, error)
    return None
