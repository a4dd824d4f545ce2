"""Progress bars on long work: on standard error, silent when nobody is looking."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from subspacelab.core.callbacks import Advance
from subspacelab.core.errors import printable


@contextmanager
def progress_bar(description: str, total: float, unit: str) -> Iterator[Advance]:
    """Yields `advance(amount)`; the bar counts to `total` in `unit` and shows elapsed and remaining time."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} " + unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(printable(description), total=total)
        yield lambda amount: progress.update(task, advance=amount)
