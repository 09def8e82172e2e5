"""A part of the count of signals: one command, at moments of its imports and compilations."""

import signal

import pytest

from tests.faults.signals import commands, faults, interrupt


@pytest.mark.slow
@pytest.mark.row(40)
@pytest.mark.parametrize(("number", "seconds"), [(signal.SIGINT, 1.0), (signal.SIGINT, 6.0), (signal.SIGTERM, 9.0)])
def test_an_experiment_ends_with_the_status_of_the_signal(tmp_path, number, seconds):
    out = tmp_path / "out"
    code, said = interrupt("hoag", number, seconds, out)
    assert code == 128 + number and faults(code, said, number, out) == [], said


def test_every_experiment_is_among_the_commands():
    found = commands()
    assert {"compare", "distillation", "study.mnist", "benchmarks.cost"} <= set(found)
    assert not {"publish", "proton.rebuild", "aerosol.rebuild", "benchmarks.loop"} & set(found)
