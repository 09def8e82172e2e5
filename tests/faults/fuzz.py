"""Calls every public callable with wrong arguments, and counts what happens.

    python -m tests.faults.fuzz --calls 20000
    python -m tests.faults.fuzz --only Reverse --show

Each argument in turn takes every value of `kinds.values`, or a random share of them, the others being right; then
random pairs of arguments do, up to the number of calls asked for. An outcome is

- `named`: an error that names an argument at fault;
- `unnamed`: an error that does not, or one of a right value;
- `taken`: a result, from values that are right or may be;
- `silent`: a result, though a value is wrong;
- `slow`: over ten seconds of processor time, or a minute; `crash`: the process died.
"""

import argparse
import collections
import contextlib
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings

import jax

from tests.helpers import ROOT

jax.config.update("jax_enable_x64", True)  # as in the processes of the calls: values are known by what they print
LONGEST = 10.0  # seconds of processor time, so that other work on the machine does not count
PATIENCE = 60.0  # seconds by the clock, for what waits
MEMORY = 8 * 2**30  # so that what asks for too much does not take it from others
GROUPS = 8  # processes, one after another: a crash costs no more than its group
PACKAGES = ("library", "trials", "ensemble", "training", "methods")  # modules with a table each


def plan(calls, number, seed, share=1.0):
    """`(callable, {argument: label of a value})` of every call, a share of the singles first."""
    from .kinds import values

    labels = list(values())
    found = [
        (name, {argument: label})
        for name, (_, arguments) in calls.items()
        for argument in arguments
        for label in labels
    ]
    generator, several = random.Random(seed), [name for name, (_, arguments) in calls.items() if len(arguments) > 1]
    if share < 1:
        found = generator.sample(found, round(share * len(found)))
    while len(found) < number and several:
        name = generator.choice(several)
        pair = generator.sample(list(calls[name][1]), 2)
        found.append((name, {argument: generator.choice(labels) for argument in pair}))
    return found


def late(*_):
    raise TimeoutError


@contextlib.contextmanager
def limited():
    """Raises `TimeoutError` in a block that takes too long."""
    timers = ((signal.SIGPROF, signal.ITIMER_PROF, LONGEST), (signal.SIGALRM, signal.ITIMER_REAL, PATIENCE))
    before = [signal.signal(number, late) for number, _, _ in timers]
    try:
        for _, timer, seconds in timers:
            signal.setitimer(timer, seconds)
        yield
    finally:
        for (number, timer, _), handler in zip(timers, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


def outcome(function, arguments, changes):
    """Returns the outcome of a call with some arguments changed, and its message."""
    verdicts = [arguments[name].verdict(value) for name, value in changes.items()]
    call = {name: kind.right() for name, kind in arguments.items()} | changes
    try:
        with limited():
            jax.block_until_ready(function(**call))
    except TimeoutError:
        return "slow", ""
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        named = any(re.search(rf"\b{re.escape(name)}\b", str(error)) for name in changes)
        known = isinstance(error, TypeError | ValueError | OSError | MemoryError)
        if all(callable(value) and arguments[name].own for name, value in changes.items()):
            return "taken", text
        right = all(verdict is True for verdict in verdicts)
        return ("named" if named and known and not right else "unnamed"), text
    return ("silent" if any(verdict is False for verdict in verdicts) else "taken"), ""


def child(calls, tasks):
    """Makes calls, and prints the number of each before it and its outcome after it."""
    from .kinds import value

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")
    for line in tasks:
        number, (name, changed) = json.loads(line)
        print(json.dumps([number]), flush=True)
        function, arguments = calls[name]
        begun = time.process_time()
        result, text = outcome(function, arguments, {argument: value(label) for argument, label in changed.items()})
        if time.process_time() - begun > LONGEST:
            result = "slow"
        print(json.dumps([number, result, text[:300]]), flush=True)


def run_group(tasks, package):
    """Outcomes of some calls in a process of their own, which is started anew after a crash."""
    found, left = {}, dict(tasks)
    while left:
        command = [sys.executable, "-m", "tests.faults.fuzz", "--package", package, "--child"]
        env = os.environ | {"JAX_ENABLE_X64": "1", "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT)}
        with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as lines:
            lines.writelines(json.dumps([number, task]) + "\n" for number, task in left.items())
            lines.seek(0)
            done = subprocess.run(command, cwd=folder, env=env, stdin=lines, capture_output=True, text=True)
        last = None
        for line in done.stdout.splitlines():
            if not line.startswith("["):
                continue
            last, *rest = json.loads(line)
            if rest:
                found[last] = rest
                left.pop(last)
        if left and last is None:
            raise SystemExit(done.stderr)
        if left and last in left:
            found[last] = ["crash", f"exit code {done.returncode}: {done.stderr[-200:]}"]
            left.pop(last)
    return found


def fuzz(package, number, seed=0, only=(), share=1.0):
    """Yields `(task, outcome, message)` of every call, group by group."""
    calls = {name: call for name, call in tables(package).items() if not only or name in only}
    tasks = list(enumerate(plan(calls, number, seed, share)))
    names = sorted({name for _, (name, _) in tasks})
    size = -(-len(names) // GROUPS)
    for group in batched(names, size):
        part = [task for task in tasks if task[1][0] in group]
        found = run_group(part, package)
        yield from ((task, *found[i]) for i, task in part)


def batched(items, size):
    return [items[i : i + size] for i in range(0, len(items), size)]


def tables(package):
    import importlib

    return importlib.import_module(f"tests.faults.{package}").calls()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--package", default="library", choices=PACKAGES)
    parser.add_argument("--calls", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0, help="of the calls with one wrong value")
    parser.add_argument("--only", nargs="*", default=())
    parser.add_argument("--show", action="store_true", help="print every call that is neither named nor taken")
    parser.add_argument("--child", action="store_true")
    arguments = parser.parse_args()
    if arguments.child:
        child(tables(arguments.package), sys.stdin)
        return
    counts, names, bad = collections.Counter(), set(), collections.Counter()
    asked = arguments.package, arguments.calls, arguments.seed, arguments.only, arguments.share
    for (name, changes), result, text in fuzz(*asked):
        counts[result] += 1
        names.add(name)
        if result not in ("named", "taken"):
            bad[name, result] += 1
            if arguments.show or bad[name, result] == 1:
                print(name, changes, result, text, flush=True)
    print(f"{sum(counts.values())} calls of {len(names)} callables: {dict(counts)}")
    for (name, result), number in bad.items():
        print(f"{name}: {number} {result}")
    raise SystemExit(bool(bad))


if __name__ == "__main__":
    main()
