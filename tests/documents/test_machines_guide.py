"""The worker of the guide runs, several at once, as an array of SLURM starts them."""

import os
import re
import subprocess
import sys

import optuna
import pytest

from tests.helpers import ROOT

TEXT = (ROOT / "docs" / "machines.md").read_text()


@pytest.mark.slow
@pytest.mark.row(39)
def test_workers_share_a_study(tmp_path):
    (worker,) = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    (job,) = re.findall(r"```sh\n(#!/bin/bash\n.*?)```", TEXT, re.S)
    (tmp_path / "worker.py").write_text(worker)
    command = job.replace("python worker.py", f"{sys.executable} worker.py")
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    tasks = [
        subprocess.Popen(["bash", "-c", command], cwd=tmp_path, env=env | {"SLURM_ARRAY_TASK_ID": str(number)})
        for number in range(2)
    ]
    assert [task.wait(60) for task in tasks] == [0, 0]
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "study.log"))
    study = optuna.load_study(study_name="hypergrad", storage=optuna.storages.JournalStorage(backend))
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 50
    assert study.best_value < 0.5
