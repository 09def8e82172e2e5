"""Experiments are tested in the precision that their users have."""

import pytest

from tests import helpers


@pytest.fixture
def as_users_run_it():
    """Single precision, which some experiments leave by themselves, and optax's own promotion of types."""
    with helpers.as_users_run_it():
        yield
