"""Files that are replaced as a whole, and refusals of paths that cannot be written."""

import contextlib
import glob
import os
import socket
import stat
from collections.abc import Iterator
from typing import BinaryIO

from ensembles.ground.rule import shown

Path = str | os.PathLike[str]
HOST = socket.gethostname()


@contextlib.contextmanager
def replacing(path: Path, shared: bool = False) -> Iterator[BinaryIO]:
    """Opens a file for writing that takes the name `path` when the block ends, complete and on the disk.

    Until then it is `path` with `.tmp` appended, and a file of that name that a killed process left is dropped. An
    error inside the block leaves the old file as it was. Permissions of the old file are kept, and a symbolic link
    stays a link. One process at a time may write a path, unless it is `shared`: then each has its own temporary name.
    """
    target = os.path.realpath(path)
    temporary = f"{target}.{HOST}-{os.getpid()}.tmp" if shared else target + ".tmp"
    for left in _left(target) if shared else [temporary]:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(left)
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


def _left(target: str) -> list[str]:
    """Returns the temporary files that processes of this machine have left, this one included."""
    start = f"{target}.{HOST}-"
    found = {name: name.removeprefix(start).removesuffix(".tmp") for name in glob.glob(f"{glob.escape(start)}*.tmp")}
    return [name for name, number in found.items() if number.isdecimal() and not _is_another(int(number))]


def _is_another(process: int) -> bool:
    """Returns whether another process has this number."""
    with contextlib.suppress(PermissionError):  # somebody else's
        try:
            os.kill(process, 0)
        except (ProcessLookupError, OverflowError):
            return False
    return process != os.getpid()


def sync_folder(path: Path) -> None:
    """Puts the names in the folder of `path` on the disk, where the system can."""
    with contextlib.suppress(OSError, AttributeError):
        folder = os.open(os.path.dirname(os.path.realpath(path)), os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def check_path(path: Path, name: str) -> str:
    """Returns the absolute path of a file as text, `~` replaced by the home folder.

    **Raises** `TypeError` where it is no path (an integer would be taken for an open file, `True` for the output),
    `ValueError` where it is empty or not a regular file, `IsADirectoryError` where it is a folder, `FileNotFoundError`
    or `NotADirectoryError` where its folder does not exist, another `OSError` where the system cannot tell; each names
    the argument.
    """
    text = _text(path, name)
    folder = os.path.dirname(os.path.realpath(text))
    if not os.path.basename(text):
        raise IsADirectoryError(f"{name}={text!r} must be a file, but ends as a folder does")
    try:
        with naming(text, name):
            found = os.stat(text).st_mode
    except (FileNotFoundError, NotADirectoryError):
        found = stat.S_IFREG  # a new file
    if stat.S_ISDIR(found):
        raise IsADirectoryError(f"{name}={text!r} must be a file, but is a folder")
    if not stat.S_ISREG(found):
        raise ValueError(f"{name}={text!r} must be a file, but is a pipe, a socket or a device")
    if not os.path.exists(folder):
        raise FileNotFoundError(f"{name}={text!r}: its folder {folder} does not exist")
    if not os.path.isdir(folder):
        raise NotADirectoryError(f"{name}={text!r}: {folder} is not a folder")
    return text


def check_folder(path: Path, name: str) -> str:
    """Returns the absolute path of a folder as text, `~` replaced by the home folder, and makes it if it is missing.

    **Raises** `TypeError`, `ValueError` or `OSError` naming the argument.
    """
    text = _text(path, name)
    if os.path.exists(text) and not os.path.isdir(text):
        raise NotADirectoryError(f"{name}={text!r} must be a folder, but is a file")
    with naming(text, name):
        os.makedirs(text, exist_ok=True)
    return text


@contextlib.contextmanager
def naming(path: str, name: str) -> Iterator[None]:
    """Raises an `OSError` from inside the block as one of its own kind that names the argument."""
    try:
        yield
    except OSError as error:
        text = f"{name}={path!r} cannot be used: "
        raise OSError(error.errno, text + (error.strerror or str(error)).removeprefix(text)) from error


def _text(path: Path, name: str) -> str:
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"{name} must be a path (str or os.PathLike), got {shown(path)}")
    text = os.fspath(path)
    if not isinstance(text, str):
        raise TypeError(f"{name} must be a path of type str, got {shown(path)}")
    if not text or "\0" in text:
        raise ValueError(f"{name} must be the path of a file, got {text!r}")
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} must be the path of a file, got {text!r}: {error}") from None
    text = os.path.expanduser(text)
    if os.path.isabs(text):
        return text
    with naming(text, name):
        return os.path.join(os.getcwd(), text)  # the process may go to another folder
