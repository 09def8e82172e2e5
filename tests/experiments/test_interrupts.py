"""Interrupted commands end with one line, and with the status of the signal."""

import signal
import subprocess
import sys
import time

import pytest

from experiments.common.interrupts import PATIENCE, interrupts

from tests.helpers import ROOT

FRAME = """
import hashlib, time
from experiments.common.interrupts import interrupts
with interrupts.installed("stopped; go on"):
    print("ready", flush=True)
    {body}
"""
WAITS = "time.sleep(60)"
NEVER_IN_PYTHON = "hashlib.pbkdf2_hmac('sha256', b'as XLA', b'while it compiles', 2**31 - 1)"
IGNORED = """
    class Closes:
        def __del__(self):
            time.sleep(60)
    closes = Closes()
    del closes
    time.sleep(60)
"""
SAVES = """
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        time.sleep(0.5)
        print("saved", flush=True)
        raise
"""
SAVES_FOR_EVER = """
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        print("saves", flush=True)
        time.sleep(60)
"""


def start(body):
    command = [sys.executable, "-c", FRAME.format(body=body.strip())]
    process = subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)  # until it is in the midst of what it does
    return process


@pytest.mark.variants(quick=["time*", "body*"], slow=["hashlib*"])
@pytest.mark.row(40)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("body", [WAITS, NEVER_IN_PYTHON, IGNORED, SAVES])
def test_one_line_and_the_status_of_the_signal(body, number):
    with start(body) as process:
        process.send_signal(number)
        found, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (128 + number, "\nstopped; go on\n")
    assert found == ("saved\n" if body is SAVES else "")


@pytest.mark.slow
@pytest.mark.row(40)
def test_a_second_signal_ends_at_once():
    with start(SAVES_FOR_EVER) as process:
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "saves\n"
        time.sleep(1.5 * PATIENCE)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (128 + signal.SIGINT, "\nstopped; go on\n")


def test_other_errors_and_handlers_are_left_alone():
    before, hook = signal.getsignal(signal.SIGTERM), sys.excepthook
    with pytest.raises(ZeroDivisionError), interrupts.installed("not said"):
        assert signal.getsignal(signal.SIGTERM) is not before
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGTERM) is before and sys.excepthook is hook
    assert signal.set_wakeup_fd(-1) == -1
