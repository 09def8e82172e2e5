"""A lock that names its holder."""

import errno
import os
import socket
import time
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from .checkpoint import CheckpointError

try:
    import fcntl
except ImportError:  # not on this system, where nothing is locked
    fcntl = None  # type: ignore[assignment]

UNABLE = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)  # a file system without locks, such as some of clusters
_held = weakref.WeakSet[BinaryIO]()


def _let_go() -> None:
    """Closes the files that a new process has from the one that made it: it could outlive it, and keep their locks."""
    for file in list(_held):
        with suppress(OSError):
            file.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


@contextmanager
def locked(file: BinaryIO, path: str) -> Iterator[None]:
    """Locks an open file. The system releases the lock when the process ends, however it ends.

    While it is held, `<path>.holder` says by which process. A process that this one makes by a fork has the file
    closed. A file system that knows no locks is a `RuntimeWarning`.

    **Raises** `CheckpointError` naming the process that holds it.
    """
    holder = Path(f"{path}.holder")
    _lock(file, path, holder)
    _held.add(file)
    with suppress(OSError):  # a name is a courtesy
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
    try:
        yield
    finally:
        _held.discard(file)
        with suppress(OSError):
            holder.unlink(missing_ok=True)


def _lock(file: BinaryIO, path: str, holder: Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        name = "another process"
        with suppress(OSError, ValueError):  # gone meanwhile, or no text
            name = holder.read_text()[:200]
        raise CheckpointError(f"{path} is in use by {name}") from None
    except OSError as error:
        if error.errno not in UNABLE:
            raise
        text = f"{path} lies where files cannot be locked ({error.strerror}): let no other process use it"
        warnings.warn(text, RuntimeWarning, stacklevel=2)
