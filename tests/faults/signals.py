"""Sends a signal to every experiment command at random moments, and looks at what it leaves.

    python -m tests.faults.signals --rounds 2
    python -m tests.faults.signals --signal SIGTERM --only hoag schedules

Each round starts the command with `--quick` in a new folder and sends the signal at a random moment of the first
seconds, imports and compilations included; then the same command goes on from there until it is interrupted once more.
The status must be 130 or 143 (0 where it had finished), standard error must end with the line that says how to go on,
without a traceback, and every file that was written must be whole: JSON that can be read, no half-written file.
"""

import argparse
import collections
import json
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

from tests.helpers import ROOT

LONGEST = 12.0  # seconds after the start until the signal, where nothing else runs
GRACE = 60.0  # seconds to end
# Without the cache and the quick compilation of the tests, so that compilations take time.
SHARED = {"JAX_ENABLE_COMPILATION_CACHE": "false", "JAX_DISABLE_MOST_OPTIMIZATIONS": "0", "XLA_FLAGS": ""}
SHARED |= {"TF_CPP_MIN_LOG_LEVEL": "3"}


def commands():
    """Names of the modules that `python -m experiments.NAME` runs by `command`, whose options all have `--quick`."""
    folder, found = ROOT / "experiments", set[Path]()
    for path in folder.rglob("*.py"):
        main = path.read_text().rpartition('if __name__ == "__main__":')[2]
        if re.search(r"^    (command|only)\(", main, re.M):
            found.add(path.parent if path.stem == "__main__" else path.with_suffix(""))
    return [".".join(path.relative_to(folder).parts) for path in sorted(found)]


def interrupt(name, number, seconds, out, again=0.0):
    """`(exit code, standard error)` of a command that gets the signal after so many seconds, and once more."""
    command = [sys.executable, "-m", f"experiments.{name}", "--quick", "--out", str(out)]
    env = os.environ | SHARED | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=env,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )
    time.sleep(seconds)
    process.send_signal(number)
    if again:
        time.sleep(again)
        process.send_signal(number)
    try:
        _, said = process.communicate(timeout=GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        _, said = process.communicate()
        return None, said
    return process.returncode, said


def faults(code, said, number, out):
    """Lists what is wrong with the end of a command."""
    found = []
    if code not in (0, 128 + number):
        found.append(f"exit code {code}")
    lines = said.strip().splitlines()
    if code != 0 and not (lines and lines[-1].startswith("stopped")):
        found.append(f"the last line is {lines[-1:]!r}")
    if "Traceback" in said:
        found.append("a traceback")
    for path in out.rglob("*") if out.exists() else ():
        if path.suffix == ".tmp":
            found.append(f"{path.name} is left behind")
        if path.suffix == ".json":
            try:
                json.loads(path.read_text())
            except ValueError:
                found.append(f"{path.name} is not whole")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--signal", default="SIGINT", choices=["SIGINT", "SIGTERM"])
    parser.add_argument("--only", nargs="*", default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=LONGEST, help="seconds after the start until the signal")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no further command after so long")
    arguments = parser.parse_args()
    number, generator = signal.Signals[arguments.signal], random.Random(arguments.seed)
    codes, wrong, end = collections.Counter(), [], time.monotonic() + arguments.seconds
    for name in arguments.only or commands():
        if time.monotonic() > end:
            break
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out"
            for _ in range(arguments.rounds):
                seconds = generator.uniform(0.5, arguments.longest)
                code, said = interrupt(name, number, seconds, out)
                codes[code] += 1
                wrong += [(name, round(seconds, 2), fault, said[-300:]) for fault in faults(code, said, number, out)]
    print(f"{sum(codes.values())} times {arguments.signal}, exit codes {dict(codes)}, {len(wrong)} faults")
    for fault in wrong:
        print("  ", *fault)
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
