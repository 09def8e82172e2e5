"""Downloads that are known before they are opened, and archives of which nothing is unpacked but what is asked for."""

import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from hypergrad.ground.files import replacing

LARGEST = 2**30  # bytes of a member of an archive


class DataError(ValueError):
    """Data that cannot be used; the message names their file, or the option that asks for too much of them."""


def cache() -> Path:
    """Returns the user's cache folder of this project."""
    import pooch

    return Path(pooch.os_cache("hypergrad-jax"))


def refuse_other(path: Path, sha256: str) -> None:
    """Raises `DataError` naming a file whose SHA-256 is not the known one."""
    import pooch

    if (found := pooch.file_hash(str(path))) != sha256:
        raise DataError(f"{path} is not the original file: its SHA-256 is {found} and not {sha256}; delete it")


def download(address: str, sha256: str | None, tried: Path | None, advice: str) -> Path:
    """Returns a file of the user's cache, downloaded under a temporary name unless it is there.

    **Arguments**: the SHA-256, `None` where nobody has published it; `tried`, the folder that did not have the file;
    `advice`, what to do by hand.

    **Raises** `FileNotFoundError` with all of that where the download fails, `DataError` where it is another file.
    """
    import pooch

    path = cache() / address.rpartition("/")[2]
    if path.exists():
        if sha256 is not None:
            refuse_other(path, sha256)
        return path
    here = "no local folder was given" if tried is None else f"it is not in {tried}"
    try:
        return Path(pooch.retrieve(address, sha256, path.name, path.parent))
    except OSError as error:
        if (response := getattr(error, "response", None)) is not None:
            response.close()
        raise FileNotFoundError(f"{path.name} could not be downloaded from {address}, and {here}; {advice}") from error
    except ValueError as error:  # another hash
        raise DataError(
            f"{address} gave another file than the known one, which was not kept: {error}; {advice}"
        ) from None


def members(archive: Path, names: Iterable[str]) -> dict[str, bytes]:
    """Returns the content of some files of a tar archive by their last names; nothing is written.

    **Raises** `DataError` naming the archive where it is damaged, has a name not once as an ordinary file, or one that
    is larger than any data of the experiments.
    """
    try:
        with tarfile.open(archive) as tar:
            found: dict[str, list[tarfile.TarInfo]] = {name: [] for name in names}
            for member in tar:
                if (name := PurePosixPath(member.name).name) in found:
                    found[name].append(member)
            wrong = [name for name, parts in found.items() if len(parts) != 1 or not parts[0].isreg()]
            if wrong:
                raise DataError(f"{archive} does not hold {wrong[0]} once as an ordinary file; delete it")
            if large := [name for name, (part,) in found.items() if part.size > LARGEST]:
                raise DataError(f"{large[0]} in {archive} is larger than {LARGEST} bytes; delete it")
            content = {name: tar.extractfile(part).read() for name, (part,) in found.items()}  # type: ignore[union-attr]
            stream = tar.fileobj
            while stream is not None and stream.read(2**20):
                pass  # to the end, where the checksum of the whole is
            return content
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise DataError(f"{archive} is damaged: {error}; delete it") from error


def keep(path: Path, content: bytes) -> Path:
    """Writes a file in one step and returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(content)
    return path
