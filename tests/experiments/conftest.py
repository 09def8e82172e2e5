"""Experiments are tested in the precision that their users have, and command lines in this process."""

import runpy
import warnings

import pytest

from tests import helpers


@pytest.fixture
def as_users_run_it():
    """Single precision, which some experiments leave by themselves, and optax's own promotion of types."""
    with helpers.as_users_run_it():
        yield


@pytest.fixture
def says(capsys, monkeypatch):
    """A function that runs `python -m experiments.NAME ...`; returns its exit status and text."""

    def run(name, *arguments):
        monkeypatch.setattr("sys.argv", [name, *arguments])
        monkeypatch.setenv("COLUMNS", "120")
        with warnings.catch_warnings(), pytest.raises(SystemExit) as ended:
            warnings.filterwarnings("ignore", ".*found in sys.modules", RuntimeWarning)  # other tests import it
            runpy.run_module(f"experiments.{name}", run_name="__main__", alter_sys=True)
        return ended.value.code, "".join(capsys.readouterr())

    return run
