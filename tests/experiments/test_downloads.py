"""Archives and downloads: nothing is opened that is not known, nothing is written that was not asked for."""

import gzip
import hashlib
import http.server
import io
import math
import tarfile
import threading
from functools import partial

import pytest

from experiments.common import data, downloads


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The address of a folder, and an empty cache."""
    folder = tmp_path / "served"
    folder.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()


def pack(path, *parts):
    with tarfile.open(path, "w:gz") as archive:
        for info, content in parts:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def part(name, content=b"content", kind=tarfile.REGTYPE, to=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, to
    return info, content if kind == tarfile.REGTYPE else b""


@pytest.mark.row(36)
def test_nothing_of_an_archive_is_written(tmp_path):
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    parts = [part("../../wanted.txt"), part("/outside.txt"), part("../../outside.txt"), part("deep/../../../x")]
    archive = pack(inside / "archive.tar.gz", *parts)
    assert downloads.members(archive, ["wanted.txt"]) == {"wanted.txt": b"content"}
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [archive]


@pytest.mark.row(36)
@pytest.mark.parametrize(
    "parts",
    [
        [part("wanted.txt", kind=tarfile.SYMTYPE, to="/etc/passwd")],
        [part("wanted.txt", kind=tarfile.LNKTYPE, to="other")],
        [part("wanted.txt", kind=tarfile.DIRTYPE)],
        [part("a/wanted.txt"), part("b/wanted.txt")],
        [part("other.txt")],
    ],
)
def test_what_is_not_one_ordinary_file_is_refused(tmp_path, parts):
    archive = pack(tmp_path / "archive.tar.gz", *parts)
    with pytest.raises(ValueError, match=r"archive.tar.gz does not hold wanted.txt once as an ordinary file"):
        downloads.members(archive, ["wanted.txt"])


@pytest.mark.row(37)
def test_a_truncated_archive_is_refused(tmp_path):
    whole = pack(tmp_path / "archive.tar.gz", part("wanted.txt", bytes(range(256)) * 100)).read_bytes()
    for length in (0, 1, 20, len(whole) // 2, len(whole) - 9):
        (tmp_path / "archive.tar.gz").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="archive.tar.gz (is damaged|does not hold)"):
            downloads.members(tmp_path / "archive.tar.gz", ["wanted.txt"])


@pytest.mark.row(37)
def test_a_download_of_another_hash_is_refused_and_not_kept(server):
    folder, address = server
    (folder / "set.bin").write_bytes(b"other")
    with pytest.raises(ValueError, match=rf"{address}set.bin gave another file.*place it by hand"):
        downloads.download(address + "set.bin", hashlib.sha256(b"known").hexdigest(), None, "place it by hand")
    assert not list(downloads.cache().rglob("*set.bin"))
    (folder / "set.bin").write_bytes(b"known")
    sha256 = hashlib.sha256(b"known").hexdigest()
    path = downloads.download(address + "set.bin", sha256, None, "")
    assert path.read_bytes() == b"known"
    path.write_bytes(b"changed")
    with pytest.raises(ValueError, match=r"set.bin is not the original file"):
        downloads.download(address + "set.bin", sha256, None, "")


@pytest.mark.row(37)
def test_a_failed_download_says_what_to_do(server, tmp_path):
    _, address = server
    with pytest.raises(FileNotFoundError) as error:
        downloads.download(address + "missing.bin", None, tmp_path, "place it by hand")
    for word in (address + "missing.bin", str(tmp_path), "place it by hand"):
        assert word in str(error.value)


@pytest.mark.row(37)
def test_a_truncated_data_file_is_named(tmp_path):
    names, parts = list(data.MNIST), [(3, 60_000, 28, 28), (1, 60_000), (3, 10_000, 28, 28), (1, 10_000)]
    for name, (axes, *shape) in zip(names, parts, strict=True):
        header = bytes([0, 0, 8, axes]) + b"".join(size.to_bytes(4, "big") for size in shape)
        (tmp_path / name).write_bytes(gzip.compress(header + bytes(math.prod(shape)), 1))
    train, test = data.fashion_mnist(tmp_path)
    assert train.x.shape == (60_000, 784) and test.y.shape == (10_000,)
    labels, last = (tmp_path / names[index] for index in (1, 3))
    whole = labels.read_bytes()
    labels.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=rf"{labels.name} is damaged"):
        data.fashion_mnist(tmp_path)
    labels.write_bytes(whole)
    for other in (b"", b"more", gzip.decompress(last.read_bytes())[:-1], gzip.decompress(last.read_bytes()) + b"0"):
        last.write_bytes(gzip.compress(other))
        with pytest.raises(ValueError, match=rf"{last.name} is no IDX file of 10000 bytes"):
            data.fashion_mnist(tmp_path)
