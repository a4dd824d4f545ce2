"""Clones of this tree, a toy pipeline, and a store for each test."""

from collections.abc import Callable

import pytest
from tests.clones import Clone, make_smoke_clone_in
from tests.integration.toy_pipeline import pipeline
from tests.stores import _own_environment, bare_place, empty_store, place, wait_for

__all__ = ["_own_environment", "bare_place", "empty_store", "pipeline", "place", "wait_for"]


@pytest.fixture(scope="session")
def make_smoke_clone(tmp_path_factory) -> Callable[[], Clone]:
    """Makes a clone that is set to the smoke study and has run nothing yet."""

    return lambda: make_smoke_clone_in(tmp_path_factory.mktemp("clone"))


@pytest.fixture(scope="session")
def smoke_clone(make_smoke_clone) -> Clone:
    """A clone in which the smoke study has run once through `dvc repro`, committed."""
    clone = make_smoke_clone()
    clone.run("dvc", "repro")
    clone.run("git", "add", "-A")
    clone.run("git", "commit", "-qm", "results of the smoke study")
    return clone
