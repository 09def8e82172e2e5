"""`python -m hypergrad` tests every estimator, and says which failed."""

import subprocess
import sys

import optax
import pytest

import hypergrad as hg
from hypergrad import __main__ as self_test

from tests.helpers import ROOT

SHORT = hg.OptaxSolver(optax.sgd(0.3), 3)


class Broken(hg.Reverse):
    def step(self, problem, hparams, state, key):
        raise RuntimeError("no memory left")


def only(monkeypatch, **estimators):
    subjects = {name: self_test.Subject(one) for name, one in estimators.items()}
    monkeypatch.setattr(self_test, "subjects", lambda: subjects)


def test_a_wrong_and_a_broken_estimator_are_named(monkeypatch, capsys):
    only(monkeypatch, right=hg.Reverse(SHORT), wrong=hg.Greedy(SHORT), broken=Broken(SHORT))
    assert self_test.main([]) == 1
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")}
    assert " ok " in lines["right"]
    assert "FAILED  relative error" in lines["wrong"]
    assert "FAILED  RuntimeError: no memory left" in lines["broken"]


@pytest.mark.slow
def test_every_estimator_passes_here():
    result = subprocess.run([sys.executable, "-m", "hypergrad"], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "jax " in result.stdout and "devices: " in result.stdout and "\n0 failed" in result.stdout
