"""Ends of a command by Ctrl-C or SIGTERM: one line instead of a traceback, with status 130 or 143.

A signal raises `KeyboardInterrupt` in the main thread, so that loops save what they have on the way out. While XLA
compiles, Python does not see the signal: where the main thread has not come back after a moment, another thread ends
the process. What is finished is on disk by then. A second signal ends the process at once.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)
AGAIN = 0.05  # seconds until an interrupt that was ignored is raised once more
PATIENCE = 1.0  # seconds that the main thread has to come back to Python


class Interrupts:
    """The state of the process: the line to say at the end, and the signal that came."""

    def __init__(self) -> None:
        self.line = "stopped"
        self.number = signal.SIGINT
        self._seen, self._lock = threading.Event(), threading.Lock()
        self._repeats = 0  # signals that are on their way for the second time
        self._remove: Callable[[], None] | None = None

    @contextlib.contextmanager
    def installed(self, line: str) -> Iterator[None]:
        """Ends the process with this line where the block is interrupted."""
        fresh, self.line = self._remove is None, line
        self.install()
        try:
            yield
        except KeyboardInterrupt:
            self.end()
        finally:
            if fresh:
                self.remove()

    def install(self) -> None:
        """Takes over both signals, and what is said about an interrupt that nobody caught; once."""
        if self._remove is not None:
            return
        there, here = socket.socketpair()
        here.setblocking(False)
        wakeup = signal.set_wakeup_fd(here.fileno(), warn_on_full_buffer=False)
        handlers = {number: signal.signal(number, self._raise) for number in SIGNALS}
        others, ignored = sys.excepthook, sys.unraisablehook

        def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
            self.end() if issubclass(kind, KeyboardInterrupt) else others(kind, error, trace)

        def try_again(found: "sys.UnraisableHookArgs") -> None:
            """Raises the interrupt once more where Python could not, such as within a callback of the collector."""
            if not issubclass(found.exc_type, KeyboardInterrupt):
                return ignored(found)
            self._repeats += 1
            threading.Timer(AGAIN, signal.pthread_kill, (threading.main_thread().ident, self.number)).start()

        def remove() -> None:
            signal.set_wakeup_fd(wakeup)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            sys.excepthook, sys.unraisablehook = others, ignored
            here.close()

        sys.excepthook, sys.unraisablehook, self._remove = hook, try_again, remove
        threading.Thread(target=self._watch, args=(there,), daemon=True).start()

    def remove(self) -> None:
        """Leaves both signals to those who had them before."""
        if self._remove is not None:
            self._remove()
            self._remove = None

    def end(self) -> NoReturn:
        """Says the line and ends the process, without the interpreter's own end, in which a compilation may crash."""
        with self._lock:
            print(f"\n{self.line}", file=sys.stderr, flush=True)
            sys.stdout.flush()
            os._exit(128 + self.number)

    def _raise(self, number: int, frame: FrameType | None) -> None:
        if not self._seen.is_set():
            self.number = signal.Signals(number)
        self._seen.set()
        raise KeyboardInterrupt

    def _watch(self, there: socket.socket) -> None:
        """Ends the process where the main thread does not come back, or is asked twice."""
        with there, contextlib.suppress(EOFError):
            first = self._next(there)
            there.settimeout(PATIENCE)
            try:
                self._next(there)
            except TimeoutError:
                if self._seen.is_set():
                    there.settimeout(None)
                    self._next(there)
            self.number = self.number if self._seen.is_set() else first
            self.end()

    def _next(self, there: socket.socket) -> signal.Signals:
        """Returns the next of the signals. **Raises** `EOFError` once nobody listens to them any more."""
        while found := there.recv(1):
            if found[0] in SIGNALS and self._repeats == 0:
                return signal.Signals(found[0])
            self._repeats = max(0, self._repeats - 1)
        raise EOFError


interrupts = Interrupts()
