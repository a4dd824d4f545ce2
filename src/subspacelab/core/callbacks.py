"""Callbacks by which computing code reports: it draws, prints and tracks nothing itself."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

Log = Callable[[Mapping[str, float], int], None]
"""log(metrics, step): receives the metrics of a step."""

Advance = Callable[[float], None]
"""advance(amount): called when so much more work is done."""

Progress = Callable[[str, float, str], AbstractContextManager[Advance]]
"""progress(description, total, unit): a context manager that shows a progress bar and yields its `advance`."""


def no_log(metrics: Mapping[str, float], step: int) -> None:
    """A `Log` that ignores everything."""


@contextmanager
def no_progress(description: str, total: float, unit: str) -> Iterator[Advance]:
    """A `Progress` that shows nothing; `subspacelab.plotting.terminal.progress_bar` shows a bar."""
    yield lambda amount: None
