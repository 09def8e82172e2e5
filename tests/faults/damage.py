"""Flips every bit and cuts every length of a small checkpoint, file of records, journal and cell; counts what happens.

    python -m tests.faults.damage

Each damaged file must be refused with its name, or be read as the whole one is. A journal that lost its end is read up
to the last whole line: the search trains again what is missing.
"""

import collections
import json
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import hypergrad as hg
from experiments.common.cells import Cells
from experiments.common.config import Common
from hypergrad.ground.checkpoint import load_checkpoint, save_checkpoint
from hypergrad.ground.identity import digest
from hypergrad.ground.record_log import RecordLog
from hypergrad.trials.journal import Journal

SPACE = hg.trials.Space({"x": hg.trials.Float(0.0, 1.0)})
LABELS = {"method": "a", "seed": 0}


def checkpoint(folder):
    """A file, and the function that reads it."""
    path, arrays = folder / "run.ckpt", {"a": np.arange(6.0).reshape(2, 3), "key": jax.random.key(3)}
    save_checkpoint(path, jax.tree.leaves(arrays), {"run": "this one"}, {"steps": 2})
    return path, lambda: digest(load_checkpoint(path, arrays, {"run": "this one"})[0])


def records(folder):
    path, row = folder / "run.ckpt.records", {"a": jax.ShapeDtypeStruct((3,), jnp.float32)}
    log = RecordLog(path, row)
    log.open()
    log.append({"a": np.arange(9, dtype=np.float32).reshape(3, 3)})
    log.close()
    header = json.loads(json.dumps(log.header))
    return path, lambda: digest(RecordLog(path, row).read(header))


def journal(folder):
    path, key = folder / "search.jsonl", jax.random.key(0)
    train = lambda trial, key: trial.params["x"]
    hg.trials.search_trials(hg.trials.Random(), SPACE, train, key=key, num_trials=2, journal=path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    header = {name: part for name, part in lines[0].items() if name not in ("checksum", "hypergrad-jax journal")}

    def read():
        with Journal(path, header) as file:
            return json.dumps(file.events)

    return path, read


def cell(folder):
    store = Cells(Common(out=folder / "run"))
    store.write(LABELS, {"loss": [0.5, 0.25], "name": "x"})
    return store.path(LABELS), lambda: json.dumps(store.read(LABELS))


def damages(content):
    """Yields kind and content of every damaged file."""
    for place in range(len(content)):
        yield "truncated", content[:place]
        for bit in range(8):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            yield "flipped", bytes(damaged)


def outcome(path, content, read, whole):
    """One word on what reading the damaged file leads to."""
    path.write_bytes(content)
    try:
        found = read()
    except (hg.CheckpointError, SystemExit) as error:
        return "refused" if str(path) in str(error) else "UNNAMED"
    except Exception as error:
        print(f"{path.name}: {error!r}")
        return "FOREIGN ERROR"
    if found == whole:
        return "the same"
    prefix = path.suffix == ".jsonl" and whole.startswith(found[:-1])
    return "up to the last whole line" if prefix else "OTHER RESULT"


def count(make):
    """Counts of outcomes of all damages to one kind of file."""
    with tempfile.TemporaryDirectory() as folder:
        path, read = make(Path(folder))
        content, whole = path.read_bytes(), read()
        counts = collections.Counter((kind, outcome(path, part, read, whole)) for kind, part in damages(content))
    return len(content), counts


def main():
    wrong = 0
    for make in (checkpoint, records, journal, cell):
        size, counts = count(make)
        print(f"{make.__name__} of {size} bytes: " + ", ".join(f"{n} {a} {b}" for (a, b), n in sorted(counts.items())))
        wrong += sum(n for (_, found), n in counts.items() if found.isupper())
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
