"""Kills a run at random moments again and again, and compares its end with that of a run nobody disturbed.

    python -m tests.faults.kill single --kills 50
    python -m tests.faults.kill ensemble --kills 50 --signal SIGTERM

A tenth of the kills come while the program starts, the others at a moment of the run, nearly all of which lie within
the write of a checkpoint.
"""

import argparse
import collections
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.helpers import ROOT

SHARED = {"JAX_ENABLE_X64": "1", "TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


def start(victim, folder, env):
    command = [sys.executable, "-m", "tests.faults.victims", victim, str(folder / "run.ckpt")]
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    """The digest that the process prints when it is finished; its errors where it fails."""
    out, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"exit code {process.returncode}:\n{out}{errors}")
    return out.split()[-1]


def kill_once(process, number, longest, generator):
    """Sends the signal at a random moment and returns the exit code, 0 where the run had ended before."""
    if generator.random() < 0.1:
        time.sleep(generator.uniform(0, longest))
    else:
        process.stdout.readline()
        time.sleep(generator.uniform(0, longest))
    process.send_signal(number)
    process.wait()
    return process.returncode


def count(victim, kills, number, seed, folder):
    """Counts of kills by exit code, of finished runs, and of those whose bits differ."""
    env, generator = os.environ | SHARED | {"JAX_COMPILATION_CACHE_DIR": str(folder / "programs")}, random.Random(seed)
    (folder / "whole").mkdir()
    started = time.monotonic()
    process = start(victim, folder / "whole", env)
    process.stdout.readline()
    begun = time.monotonic()
    wanted, counts, codes = finish(process), collections.Counter(), collections.Counter()
    longest = time.monotonic() - begun
    print(f"undisturbed: {begun - started:.1f} s to start, {longest:.1f} s to run", flush=True)
    while sum(codes.values()) - codes[0] < kills:
        run = folder / f"run{counts['finished']}"
        run.mkdir()
        for _ in range(generator.randint(1, 8)):
            code = kill_once(start(victim, run, env), number, longest / 2, generator)
            codes[code] += 1
            counts["left behind"] += len(list(run.glob("*.tmp")))
        counts["different"] += finish(start(victim, run, env)) != wanted
        counts["finished"] += 1
        counts["files left"] += len(list(run.iterdir())) - 2
    return codes, counts


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("victim", choices=["single", "ensemble"])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--signal", default="SIGKILL", choices=["SIGKILL", "SIGTERM", "SIGINT"])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        number = signal.Signals[arguments.signal]
        codes, counts = count(arguments.victim, arguments.kills, number, arguments.seed, Path(folder))
    killed = sum(codes.values()) - codes.pop(0, 0)
    print(f"{arguments.victim}: {killed} times {arguments.signal}, exit codes {dict(codes)}")
    print(f"{counts['finished']} finished runs, {counts['different']} with other bits")
    print(f"{counts['left behind']} half-written files seen after a kill, {counts['files left']} left at the end")
    raise SystemExit(bool(counts["different"] or counts["files left"]))


if __name__ == "__main__":
    main()
