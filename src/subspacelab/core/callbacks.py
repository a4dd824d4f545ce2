"""What computing code is handed to report with: it draws, prints and tracks nothing itself."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

Log = Callable[[Mapping[str, float], int], None]
"""log(metrics, step): computing code never asks whether anybody listens."""

Advance = Callable[[float], None]
"""advance(amount): so much more of the work is done."""

Progress = Callable[[str, float, str], AbstractContextManager[Advance]]
"""progress(description, total, unit) opens a bar for the time of a block, which is given its `advance`."""


def no_log(metrics: Mapping[str, float], step: int) -> None:
    """The log of whoever does not listen."""


@contextmanager
def no_progress(description: str, total: float, unit: str) -> Iterator[Advance]:
    """The bar of whoever does not look; `subspacelab.plotting.terminal.progress_bar` shows one."""
    yield lambda amount: None
