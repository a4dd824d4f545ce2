"""A store for each test."""

from tests.stores import _own_environment, bare_place, empty_store, place, wait_for

__all__ = ["_own_environment", "bare_place", "empty_store", "place", "wait_for"]
