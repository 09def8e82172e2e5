"""Where the checkout is, and short runs of searches."""

from pathlib import Path

import hypergrad as hg
from hypergrad.testing import Case, laws

ROOT = Path(__file__).parent.parent


def after_steps(search, case: Case, steps: int, key=laws.KEY):
    """`(state, history)` of so many steps of a search, in one compiled call."""
    state = search.init(case.problem, case.params, case.hparams)
    return hg.run(search, case.problem, state, key=key, budget=10**9, chunk=steps, callback=lambda *_: True)
