"""Planted mistakes, for the tests that laws catch them."""

import jax
import pytest


@pytest.fixture
def plant(monkeypatch):
    """Replace `module.name` by `mutation(original)`; nothing compiled before or after is shared."""

    def planted(module, name, mutation):
        jax.clear_caches()
        monkeypatch.setattr(module, name, mutation(getattr(module, name)))

    yield planted
    monkeypatch.undo()
    jax.clear_caches()
