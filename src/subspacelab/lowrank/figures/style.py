"""One colour per method, in every picture of the room."""

import pandas as pd

from subspacelab.lowrank.methods import CONTROLS
from subspacelab.reports.figures import COLOURS, GREY

_COLOURS = {
    "SVD": "#000000",
    "Sketch": COLOURS[0],
    "PCA sketch": COLOURS[4],
    "ResMLP": COLOURS[1],
    "MLP": COLOURS[2],
    "AdaLoRA": COLOURS[3],
    "PCA basis": GREY,
    "random sketch": COLOURS[5],
    "random basis": "#c8c8c8",
}


def colour_of(method: str) -> str:
    """The colour of a method."""
    return _COLOURS[method]


def line_of(method: str) -> str:
    """Dashed where nothing is trained, so that a curve below it shows."""
    return "--" if method in CONTROLS else "-"


def methods_of(table: pd.DataFrame) -> list[str]:
    """The methods of a table in the order of their first rows."""
    return list(dict.fromkeys(table["method"]))
