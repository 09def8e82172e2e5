"""A lock that names its holder."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from .checkpoint import CheckpointError


@contextmanager
def locked(path: str | os.PathLike) -> Iterator[None]:
    """Holds the lock of a file. The system releases it when the process ends, however it ends.

    The lock is a file beside it with the suffix `.lock`; while it is held, `.holder` says by which process.

    **Raises** `CheckpointError` naming the process that holds it.
    """
    lock, holder = filelock.FileLock(f"{os.fspath(path)}.lock"), Path(f"{os.fspath(path)}.holder")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        name = holder.read_text() if holder.exists() else "another process"
        raise CheckpointError(f"{path} is in use by {name}") from None
    try:
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()
