"""A toy pipeline in a repository with a store of its own, as for the tests of tracking."""

from tests.integration.test_dvc_tracking import pipeline
from tests.unit.tracking.conftest import _own_environment, bare_place, empty_store, place

__all__ = ["_own_environment", "bare_place", "empty_store", "pipeline", "place"]
