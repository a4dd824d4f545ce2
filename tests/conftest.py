"""Shared set-up: shapes of the maths are checked while testing, and nothing here reaches a user's own store."""

import os

from jaxtyping import install_import_hook

# The hook must stand before the first import of the package, or the signatures go unchecked.
install_import_hook("subspacelab.linalg", "beartype.beartype")

for name in [n for n in os.environ if n.startswith(("DVC_", "MLFLOW_"))]:
    del os.environ[name]
os.environ["TRACKING"] = "off"  # tests that track say so, with a store of their own
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers on two cores; must stand before torch is imported
# Some tests set two threads, beside the other worker: threads that wait by spinning would keep both from their work.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=None, help="kills of every long stage in tests/faults; 1 without")
    parser.addoption("--kills-table", default=None, help="a file for the table of those kills, in Markdown")


def pytest_collection_modifyitems(items):
    """The pipeline's file goes first: it takes half of the time, and the other worker does the rest meanwhile."""
    items.sort(key=lambda item: item.path.name != "test_smoke.py")
