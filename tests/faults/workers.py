"""Kills workers that share an Optuna study at random moments, and looks at what is left in study and journals.

    python -m tests.faults.workers --kills 25
    python -m tests.faults.workers --storage sqlite:///{folder}/study.db
    python -m tests.faults.workers --storage postgresql+psycopg2://user@host/study
    python -m tests.faults.workers --storage grpc://localhost:13000

A data base on a server keeps its studies: each call adds one. `grpc` is Optuna's proxy, run by
`optuna.storages.run_grpc_proxy_server`.

Four workers, each with a key and a journal of its own, search at once. One of them is killed at a random moment and
started again, until so many were killed; then all finish. Each must have all its trials, each of them once in the
study, with the value that belongs to its hyperparameters, and no trial of the study may be left running.
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

import jax
import optuna

import hypergrad as hg
from hypergrad.trials.optuna.searcher import shared_study

from tests.faults.kill import SHARED, changed, finished
from tests.helpers import ROOT

WORKERS, HEARTBEAT = 4, 0.5
LONGEST = 300.0  # seconds that a worker may take in the end
SPACE = hg.trials.Space({"x": hg.trials.Float(0.0, 1.0), "n": hg.trials.Int(1, 9)})


def value(params):
    return (params["x"] - 0.3) ** 2 + params["n"]


def tpe(seed):
    return optuna.samplers.TPESampler(seed=seed)


def train(trial, key):
    time.sleep(0.05)
    return value(trial.params)


def searcher_of(storage, folder):
    """The searcher of all workers of a folder."""
    if storage.startswith("grpc://"):
        host, _, port = storage.removeprefix("grpc://").partition(":")
        storage = optuna.storages.GrpcStorageProxy(host=host, port=int(port))
    return hg.trials.Optuna(tpe, storage=storage, study=str(folder), heartbeat=HEARTBEAT)


def work(storage, folder, number, trials):
    """Searches with a journal of its own."""
    options = {"num_trials": trials, "journal": Path(folder) / f"worker{number}.jsonl"}
    searcher = searcher_of(storage, folder)
    return hg.trials.search_trials(searcher, SPACE, train, key=jax.random.key(number), **options)


def start(storage, folder, number, trials):
    command = [sys.executable, "-m", "tests.faults.workers", "--worker", str(number), "--folder", str(folder)]
    return subprocess.Popen(
        [*command, "--storage", storage, "--trials", str(trials)],
        cwd=ROOT,
        env=os.environ | SHARED,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def disturb(storage, folder, trials, kills, seed):
    """Counts of kills, restarts and losses, when all workers have finished."""
    generator, counts = random.Random(seed), collections.Counter()
    workers = [start(storage, folder, number, trials) for number in range(WORKERS)]
    while counts["kills"] < kills and any(worker.poll() is None for worker in workers):
        time.sleep(generator.uniform(0.0, 3.0))
        number = generator.choice([i for i, worker in enumerate(workers) if worker.poll() is None] or [0])
        before = finished(folder)
        workers[number].send_signal(signal.SIGKILL)
        workers[number].communicate()
        counts["kills"] += workers[number].returncode == -signal.SIGKILL
        counts["lost"] += changed(before, finished(folder))
        workers[number] = start(storage, folder, number, trials)
    for number, worker in enumerate(workers):
        _, errors = worker.communicate(timeout=LONGEST)
        if worker.returncode:
            counts["locked out"] += 1
            print(f"worker {number} ended with {worker.returncode}: {errors[-500:]}")
    return counts


def named(params):
    """The values as a text; not all storages keep their order."""
    return str(sorted(params.items()))


def examine(storage, folder, num_trials, counts):
    """Adds what is wrong in the study and the journals to the counts."""
    searcher = searcher_of(storage, folder)
    trials = shared_study(searcher).study.trials
    counts["study"] = len(trials)
    counts["running"] = sum(trial.state.name in ("RUNNING", "WAITING") for trial in trials)
    told = collections.Counter()
    for number in range(WORKERS):
        state = work(storage, folder, number, num_trials)  # from the journal alone
        counts["trials"] += len(state.history)
        counts["wrong"] += sum(one.result.value != value(one.trial.params) for one in state.history)
        told.update(named(one.trial.params) for one in state.history)
    known = collections.Counter(named(trial.params) for trial in trials if trial.state.name == "COMPLETE")
    counts["missing"], counts["twice"] = (told - known).total(), (known - told).total()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--trials", type=int, default=40, help="of each worker")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--storage", default="{folder}/study.log", help="a file or the address of a data base")
    parser.add_argument("--worker", type=int)
    parser.add_argument("--folder")
    arguments = parser.parse_args()
    if arguments.worker is not None:
        work(arguments.storage, arguments.folder, arguments.worker, arguments.trials)
        return
    counts, rounds = collections.Counter(), 0
    while counts["kills"] < arguments.kills:
        with tempfile.TemporaryDirectory() as folder:
            storage, left = arguments.storage.format(folder=folder), arguments.kills - counts["kills"]
            found = disturb(storage, Path(folder), arguments.trials, left, arguments.seed + rounds)
            examine(storage, Path(folder), arguments.trials, found)
        counts, rounds = counts + found, rounds + 1
    print(f"{counts['kills']} times SIGKILL of one of {WORKERS} workers in {rounds} searches")
    print(f"{counts['trials']} trials, {counts['lost'] + counts['missing']} of them lost after they were finished")
    print(f"{counts['twice']} twice in the study, {counts['wrong']} with a wrong value")
    print(f"{counts['locked out']} workers locked out, {counts['running']} of {counts['study']} trials left running")
    faults = ("lost", "missing", "twice", "wrong", "locked out", "running")
    raise SystemExit(any(counts[fault] for fault in faults))


if __name__ == "__main__":
    main()
