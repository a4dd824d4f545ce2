"""A toy pipeline in a repository with a store of its own, as for the tests of tracking."""

from tests.tracking.conftest import _own_environment, bare_place, empty_store, place
from tests.tracking.test_dvc import pipeline

__all__ = ["_own_environment", "bare_place", "empty_store", "pipeline", "place"]
