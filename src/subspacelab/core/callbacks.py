"""What computing code is handed to report with: it draws, prints and tracks nothing itself."""

from collections.abc import Callable, Mapping

Log = Callable[[Mapping[str, float], int], None]
"""log(metrics, step): computing code never asks whether anybody listens."""


def no_log(metrics: Mapping[str, float], step: int) -> None:
    """The log of whoever does not listen."""
