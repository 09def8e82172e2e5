"""Requests that cannot fit are refused with their size, before anything is allocated."""

import math

import pytest

from ensembles.ground import memory


@pytest.mark.row(38)
def test_more_than_there_is(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 10**9)
    memory.refuse_too_large(10**9, "size", "a batch")
    with pytest.raises(MemoryError, match="^size is too large: a batch would take 2.5 GB, and 1.0 GB are free$"):
        memory.refuse_too_large(25 * 10**8, "size", "a batch")


def test_where_nobody_knows_nothing_is_refused(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: math.inf)
    memory.refuse_too_large(10**30, "size", "a batch")


def test_there_is_some_memory():
    assert 10**8 < memory.available_bytes() < 10**14
