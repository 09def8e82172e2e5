"""A lock that names its holder."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from .checkpoint import CheckpointError

try:
    import fcntl
except ImportError:  # not on this system, where nothing is locked
    fcntl = None  # type: ignore[assignment]


@contextmanager
def locked(file: BinaryIO, path: str) -> Iterator[None]:
    """Locks an open file. The system releases the lock when the process ends, however it ends.

    While it is held, `<path>.holder` says by which process.

    **Raises** `CheckpointError` naming the process that holds it.
    """
    holder = Path(f"{path}.holder")
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            name = holder.read_text() if holder.exists() else "another process"
            raise CheckpointError(f"{path} is in use by {name}") from None
    with suppress(OSError):  # a name is a courtesy
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
    try:
        yield
    finally:
        with suppress(OSError):
            holder.unlink(missing_ok=True)
