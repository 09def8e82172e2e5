"""Kills a program at random moments again and again, and compares its end with that of one that nobody disturbed.

    python -m tests.faults.kill single --kills 50
    python -m tests.faults.kill ensemble --kills 50 --signal SIGTERM
    python -m tests.faults.kill main --kills 20
    python -m tests.faults.kill processes --kills 20

A tenth of the kills come while the program starts, the others at a moment of its work; those of `single` and `ensemble`
nearly all lie within the write of a checkpoint. Trials and cells that were finished before a kill must be there after
it, byte by byte: one that was made again has other times.
"""

import argparse
import collections
import math
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.victims import VICTIMS
from tests.helpers import ROOT

SHARED = {"JAX_ENABLE_X64": "1", "TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
GRACE = 300.0  # seconds that the processes of a killed one have to end, which on a busy machine first have to begin


def start(victim, folder, env):
    command = [sys.executable, "-m", "tests.faults.victims", victim, str(folder)]
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    """The digest that the process prints when it is finished; its errors where it fails."""
    out, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"exit code {process.returncode}:\n{out}{errors}")
    return out.split()[-1]


def kill_once(process, number, longest, generator):
    """Sends the signal at a random moment, returns the exit code, 0 where the run had ended before, and the output."""
    if generator.random() < 0.1:
        time.sleep(generator.uniform(0, longest))
    else:
        process.stdout.readline()
        time.sleep(generator.uniform(0, longest))
    process.send_signal(number)
    said, _ = process.communicate(timeout=GRACE + longest)
    return process.returncode, said


def finished(folder):
    """Contents of the files that hold finished cells and trials, by path: whole lines of a journal."""
    found = {path: path.read_bytes() for path in folder.glob("cells/*.json")}
    journals = ((path, path.read_bytes()) for path in folder.glob("*.jsonl"))
    return found | {path: content[: content.rfind(b"\n") + 1] for path, content in journals}


def changed(before, after):
    """Counts the files that do not begin any more with what was finished in them."""
    return sum(not after.get(path, b"").startswith(content) for path, content in before.items())


def alive(said):
    """Counts the processes, of those that a killed one named last, that go on after a while."""
    lines = re.findall(r"^processes (.*)$", said, re.M)
    pids, end = lines[-1].split() if lines else [], time.monotonic() + GRACE
    while (left := [pid for pid in pids if Path("/proc", pid).exists()]) and time.monotonic() < end:
        time.sleep(0.1)
    return len(left)


def count(victim, kills, number, seed, folder, seconds):
    """Counts of kills by exit code, of finished runs, and of what went wrong."""
    cache, generator = {"JAX_COMPILATION_CACHE_DIR": str(folder / "programs")}, random.Random(seed)
    env = cache | os.environ | SHARED
    for name in ("warm", "whole") if cache.items() <= env.items() else ("whole",):  # the first fills a new cache
        (folder / name).mkdir()
        started = time.monotonic()
        process = start(victim, folder / name, env)
        process.stdout.readline()
        begun = time.monotonic()
        wanted = finish(process)
    counts, codes, longest = collections.Counter(), collections.Counter(), time.monotonic() - begun
    end = time.monotonic() + seconds
    print(f"undisturbed: {begun - started:.1f} s to start, {longest:.1f} s to run", flush=True)
    while sum(codes.values()) - codes[0] < kills and time.monotonic() < end:
        run = folder / f"run{counts['finished']}"
        run.mkdir()
        for _ in range(generator.randint(1, 8)):
            before = finished(run)
            code, said = kill_once(start(victim, run, env), number, longest / 2, generator)
            codes[code] += 1
            counts["half-written"] += len(list(run.rglob("*.tmp")))
            counts["lost"] += changed(before, finished(run))
            counts["alive"] += alive(said)
        before = finished(run)
        counts["different"] += finish(start(victim, run, env)) != wanted
        counts["lost"] += changed(before, finished(run))
        counts["finished"] += 1
        counts["left"] += len([*run.rglob("*.tmp"), *run.rglob("*.holder")])
    return codes, counts


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("victim", choices=VICTIMS)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--signal", default="SIGKILL", choices=["SIGKILL", "SIGTERM", "SIGINT"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no further run after so long")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        number = signal.Signals[arguments.signal]
        wanted = arguments.victim, arguments.kills, number, arguments.seed
        codes, counts = count(*wanted, Path(folder), arguments.seconds)
    killed = sum(codes.values()) - codes.pop(0, 0)
    print(f"{arguments.victim}: {killed} times {arguments.signal}, exit codes {dict(codes)}")
    print(f"{counts['finished']} finished runs, {counts['different']} with other bits")
    print(f"{counts['lost']} times finished cells or trials were lost or made again")
    print(f"{counts['half-written']} half-written files seen after a kill, {counts['left']} left at the end")
    print(f"{counts['alive']} processes left behind by a killed one")
    raise SystemExit(any(counts[fault] for fault in ("different", "lost", "left", "alive")))


if __name__ == "__main__":
    main()
