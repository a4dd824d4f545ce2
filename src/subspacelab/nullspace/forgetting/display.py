"""What a study of forgetting tells the person at the terminal."""

import pandas as pd
from rich.console import Console

from subspacelab.nullspace.forgetting.results import HEADLINE, Forgetting
from subspacelab.plotting.terminal import print_table, show_number

COLUMNS = {
    **{"rate": "rate", "task_mean": "task", "recall_mean": "exact", f"{HEADLINE}_mean": "first"},
    **{f"{HEADLINE}_area_mean": "area", f"{HEADLINE}_at_level_mean": "at level", "delta_ce_mean": "delta ce"},
    **{"kl_new_mean": "KL new"},
}
"""Columns of the table, with their headings."""


def print_forgetting(found: Forgetting, console: Console | None = None) -> None:
    """Prints a row per method, the best area first, and what the columns mean."""
    console = console or Console()
    table = found.table()
    rows = [[row["method"], *(show_number(row[name]) for name in COLUMNS)] for row in table.to_dict("records")]
    title = f"forgetting of {found.model_id}: each method at the rate that validation problems chose"
    print_table(title, ["method", *COLUMNS.values()], rows, console=console)
    base = found.base
    console.print(
        f"{_seeds(table['num_seeds'])}; base: task {base.task:.3g}, exact {base.recall:.3g}, first"
        f" {base.recall_first:.3g}, ce {base.ce:.4g}; first: right answers still the likeliest of their kind; area:"
        f" under these over task; at level: these where the task first reaches {found.level:.3g}",
        markup=False,
    )


def _seeds(counts: "pd.Series[int]") -> str:
    low, high = counts.min(), counts.max()
    if low < high:
        return f"{low} to {high} seeds"
    return f"means over {high} seeds" if high > 1 else "1 seed"
