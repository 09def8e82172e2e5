"""Planted mistakes, for the tests that laws catch them."""

import jax
import pytest

from hypergrad.ground import shapes


@pytest.fixture
def plant(monkeypatch):
    """Replace `module.name` by `mutation(original)`; nothing compiled before or after is shared."""

    def forget():
        jax.clear_caches()
        shapes.forget()

    def planted(module, name, mutation):
        forget()
        monkeypatch.setattr(module, name, mutation(getattr(module, name)))

    yield planted
    monkeypatch.undo()
    forget()
