"""Signals are held in a block, and handed on after it."""

import signal
import threading

import pytest

from hypergrad.ground.signals import HeldSignals


def test_an_interrupt_waits_and_is_handed_on(capsys):
    with HeldSignals(False, "one moment") as signals:
        assert signals.received is None
        signal.raise_signal(signal.SIGINT)
        assert signals.received == signal.SIGINT
    assert capsys.readouterr().err == "one moment\n"
    with pytest.raises(KeyboardInterrupt):
        signals.hand_on()


def test_nothing_to_hand_on():
    with HeldSignals(True, "one moment") as signals:
        pass
    signals.hand_on()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_second_interrupt_acts_at_once():
    with pytest.raises(KeyboardInterrupt), HeldSignals(False, "one moment"):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("went on")


def test_termination_is_held_where_asked_for():
    with HeldSignals(True, "one moment") as signals:
        signal.raise_signal(signal.SIGTERM)
        assert signals.received == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_handlers_of_the_program_are_left_alone(number):
    seen = []
    before = signal.signal(number, lambda *_: seen.append(number))
    try:
        with HeldSignals(True, "one moment") as signals:
            signal.raise_signal(number)
            assert seen == [number] and signals.received is None
        signal.raise_signal(number)
        assert seen == [number, number]
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_blocks_inside_one_another(number):
    with HeldSignals(True, "outer") as outer:
        with HeldSignals(True, "inner") as inner:
            signal.raise_signal(number)
            assert inner.received == outer.received == number
        with pytest.raises(KeyboardInterrupt):
            inner.hand_on()
    with HeldSignals(True, "later") as later:
        assert later.received is None


def test_another_thread_holds_nothing():
    found = []

    def body():
        with HeldSignals(True, "one moment") as signals:
            found.append(signals.received)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert found == [None]
