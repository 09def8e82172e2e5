"""Interrupts that wait until what was computed is safe."""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any


class HeldSignals:
    """A block in which Ctrl-C and, where asked for, SIGTERM are noted instead of obeyed.

        with HeldSignals(terminate=True) as signals:
            while not signals.received:
                ...
        signals.hand_on()

    Only what Python does by itself is held: `KeyboardInterrupt` and the end of the process. Where the program has
    handlers of its own they act as ever. After the first signal the next acts at once. A block inside another sees the
    signals of the other. Outside the main thread nothing is held.
    """

    def __init__(self, terminate: bool, message: str):
        self._received: int | None = None
        self._outer: HeldSignals | None = None
        self._message = message
        self._defaults: dict[int, Any] = {signal.SIGINT: signal.default_int_handler}
        if terminate:
            self._defaults[signal.SIGTERM] = signal.SIG_DFL
        self._held: dict[int, Callable[..., Any] | int | None] = {}

    @property
    def received(self) -> int | None:
        """The number of the signal that came, if one did."""
        return self._received or (self._outer.received if self._outer else None)

    def __enter__(self) -> "HeldSignals":
        if threading.current_thread() is threading.main_thread():
            for number, default in self._defaults.items():
                handler = signal.getsignal(number)
                holder = getattr(handler, "__self__", None)
                if handler is default:
                    self._held[number] = signal.signal(number, self._note)
                elif isinstance(holder, HeldSignals):
                    self._outer = holder
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._release()

    def hand_on(self) -> None:
        """Lets the signal act that was received, if one was, as it would have acted without this block.

        **Raises** `KeyboardInterrupt` inside another block, which hands the signal on in its turn.
        """
        if self.received and self._outer:
            raise KeyboardInterrupt
        if self.received:
            signal.raise_signal(self.received)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = number
        self._release()
        with contextlib.suppress(OSError, ValueError, RuntimeError):  # closed, or in the middle of another print
            print(self._message, file=sys.stderr, flush=True)

    def _release(self) -> None:
        for number, handler in self._held.items():
            signal.signal(number, handler)
        self._held = {}
