"""The law that a search does not depend on the units of its losses, nor on their constants."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

import hypergrad as hg

from ..ground.checks import checked, function, instance, integer
from .laws import KEY
from .problems import Case
from .tolerances import assert_close, ensure

LARGE = 2.0**27  # above 1e8; a power of two changes no digit


class Units(NamedTuple):
    """F becomes `outer` F + `constant`, and L becomes `inner` L."""

    outer: float = 1.0
    constant: float = 0.0
    inner: float = 1.0

    def of(self, case: Case) -> Case:
        """Returns the case with its losses in these units."""
        valid, like = case.problem.valid, case.problem.valid["scale"]
        number = lambda x: jnp.asarray(x, like.dtype)
        outer = {"scale": valid["scale"] * number(self.outer), "shift": number(self.constant)}
        return case.replace(train={"scale": case.problem.train["scale"] * number(self.inner)}, valid=outer)


def all_units(wide: bool) -> Iterator[Units]:
    """Yields multiples from 1e-8 to 1e8, and constants up to where their rounding hides the loss."""
    for size in (LARGE, 1 / LARGE):
        yield Units(outer=size)
        yield Units(inner=size)
    yield Units(constant=1e4 if wide else 10.0)
    if wide:
        yield Units(outer=LARGE, inner=1 / LARGE, constant=-1e8)


@checked(
    function("make", "from a factor on the inner loss to a search"),
    instance("case", Case, "a Case such as problems.ridge()"),
    integer("steps", least=1, most=10_000),
)
def units_of_the_losses(make: Callable[[float], hg.AbstractSearch], case: Case, steps: int = 12) -> None:
    """F -> aF + b and L -> cL change neither the hyperparameters that a search visits nor its statuses.

    `make(c)` returns the search whose inner solver trains c L as that of `make(1.0)` trains L: a learning rate is
    divided by c. The data of the case have the entries `scale` and `shift`, as those of `problems.ridge`.

    **Raises** `AssertionError` with the units and the difference.
    """
    expected = _course(make(1.0), case, steps)
    for units in all_units(wide=case.problem.valid["scale"].dtype == np.float64):
        found = _course(make(units.inner), units.of(case), steps)
        try:
            assert_close(found.hparams, expected.hparams, "difference" if units.constant else "gradient")
            assert_close(found.value, units.outer * expected.value + units.constant, "gradient")
            statuses = [[hg.Status(int(code)) for code in one.stats.status] for one in (found, expected)]
            ensure(statuses[0] == statuses[1], f"statuses {statuses[0]}, were {statuses[1]}")
        except AssertionError as error:
            raise AssertionError(f"in {units}: {error}") from error


def _course(search: hg.AbstractSearch, case: Case, steps: int) -> hg.History:
    state = search.init(case.problem, case.params, case.hparams)
    return hg.run(search, case.problem, state, key=KEY, budget=10**12, chunk=steps, callback=lambda *_: True)[1]
