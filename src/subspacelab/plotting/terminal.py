"""Tables and progress bars on the terminal."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from subspacelab.core.callbacks import Advance
from subspacelab.core.errors import printable

WHOLE = 14
"""Characters of a name that every terminal has room for."""
WIDE = 1000
"""Columns of a terminal that has room for any table."""


def show_number(value: float | None, digits: int = 3) -> str:
    """A number with `digits` significant digits; `-` for a missing one."""
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}g}"


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, console: Console | None = None
) -> None:
    """Prints a table on standard output: first column text, the others numbers; brackets in names are not markup.

    In a narrow terminal long text is wrapped, but numbers are not: a split number would be misread. Names of up to
    `WHOLE` characters are not wrapped either; columns come closer.
    """
    console = console or Console()
    table = Table(title=_plain(title), title_justify="left", header_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    texts = [[_plain(cell) for cell in row] for row in rows]
    for i, column in enumerate(columns):
        longest = max((len(row[i]) for row in texts), default=0)
        word = max(map(len, column.split()), default=0)
        table.add_column(
            _plain(column),
            justify="right" if i else "left",
            min_width=max(word, longest if i else min(longest, WHOLE)),
            overflow="fold",
        )
    for row in texts:
        table.add_row(*row)
    if Measurement.get(console, console.options.update(width=WIDE), table).maximum > console.width:
        table.padding, table.show_edge = 0, False
    console.print(table, crop=False)
    if not table.show_edge:
        console.print()


def say_where(*places: Path) -> None:
    """Prints where results are."""
    print(f"results in {', '.join(printable(str(place)) for place in places)}")


def _plain(text: str) -> Text:
    """The text with brackets escaped, so that they are not markup."""
    return Text(printable(text))


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
