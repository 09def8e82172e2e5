"""Progress bars."""

import contextlib
from typing import Any

from .budget import Budget
from .course import Course

WHOLE = "{l_bar}{bar}| {n:.0f}/{total:.0f} [{elapsed}<{remaining}{postfix}]"  # form of a bar without fractions


def move_bar(bar: Any, course: Course, failed: int, budget: Budget, started: float) -> None:
    """Moves the bar of a run, if there is one."""
    if bar is not None:
        best = float(course.entry(lambda state: state.best.value))
        failures = {"failed": failed} if failed else {}
        bar.set_postfix(best=f"{best:.5g}", steps=course.num_steps, **failures, refresh=False)
        bar.update(min(course.used(budget, started), bar.total) - bar.n)


def progress_bar(progress: bool, total: float | None, unit: str, form: str | None = None) -> Any:
    """Returns a context with a bar, or with `None` where none is wanted. **Raises** `ImportError` without tqdm."""
    if not progress:
        return contextlib.nullcontext()
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError("progress=True needs tqdm: pip install 'hypergrad-jax[progress]'") from error
    return tqdm(total=total, unit=f" {unit}", bar_format=form)
