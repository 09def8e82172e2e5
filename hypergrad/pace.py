"""The number of steps that a run takes before it looks at them."""

import dataclasses
from collections.abc import Iterator

ROOM = 256  # steps in one compiled call that a run chooses itself
BYTES = 2**24  # of records on the device at a time
QUICK, SLOW = 0.02, 0.1  # seconds between two looks, below and above which their distance is changed


@dataclasses.dataclass
class Pace:
    """The steps of each compiled call, and how many of them are sent before the first is waited for.

    - `chunk`: steps of one call; where it is `None`, as many as suit the time of a step.
    - `watched`: somebody is to see the state after every call, so that the next is not sent before.
    - `record_bytes`: the size of what is kept of one step, as `begin` measures it.
    """

    chunk: int | None
    watched: bool
    record_bytes: int = 0
    _steps: int = 1

    @property
    def room(self) -> int:
        """The most steps of one call."""
        if self.chunk is not None or self.watched:
            return self.chunk or 1
        return self.most

    @property
    def most(self) -> int:
        """The most steps between two looks; their records are on the device together."""
        fits = BYTES // max(self.record_bytes, 1)
        return max(self.chunk or 1, min(ROOM, fits))

    def takes(self, most: int) -> Iterator[int]:
        """Yields the steps of each call until the next look, about `most` at most."""
        if self.watched:
            yield self.room
        elif self.chunk is not None:
            yield from [self.chunk] * max(1, min(self._steps, most) // self.chunk)
        else:
            yield max(1, min(self._steps, most))

    def adapt(self, steps: int, seconds: float) -> None:
        """Takes the time of the last steps into account."""
        if seconds < QUICK and steps >= self._steps:
            self._steps = min(2 * steps, self.most)
        elif seconds > SLOW:
            self._steps = max(self._steps // 2, 1)
