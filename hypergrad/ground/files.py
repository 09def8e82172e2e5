"""Files that are replaced as a whole, and refusals of paths that cannot be written."""

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import BinaryIO

Path = str | os.PathLike[str]


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Opens a file for writing that takes the name `path` when the block ends, complete and on the disk.

    Until then it is `path` with `.tmp` appended, and a file of that name that a killed process left is dropped. An
    error inside the block leaves the old file as it was. Permissions of the old file are kept, and a symbolic link
    stays a link. One process at a time may write a path.
    """
    target = os.path.realpath(path)
    temporary = target + ".tmp"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    try:
        with open(temporary, "xb") as file:
            with contextlib.suppress(FileNotFoundError):
                os.chmod(temporary, stat.S_IMODE(os.stat(target).st_mode))
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_folder(target)


def sync_folder(path: Path) -> None:
    """Puts the names in the folder of `path` on the disk, where the system can."""
    with contextlib.suppress(OSError, AttributeError):
        folder = os.open(os.path.dirname(os.path.realpath(path)), os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def check_path(path: Path, name: str) -> str:
    """Returns `path` as text.

    **Raises** `TypeError` where it is no path (an integer would be taken for an open file, `True` for the output),
    `ValueError` where it is empty, `FileNotFoundError` or `NotADirectoryError` where its folder does not exist; each
    names the argument.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"{name} must be a path (str or os.PathLike), got {path!r}")
    text = os.fspath(path)
    if not isinstance(text, str):
        raise TypeError(f"{name} must be a path of type str, got {path!r}")
    if not text or "\0" in text:
        raise ValueError(f"{name} must be the path of a file, got {text!r}")
    folder = os.path.dirname(os.path.realpath(text))
    if not os.path.exists(folder):
        raise FileNotFoundError(f"{name}={text!r}: its folder {folder} does not exist")
    if not os.path.isdir(folder):
        raise NotADirectoryError(f"{name}={text!r}: {folder} is not a folder")
    return text
