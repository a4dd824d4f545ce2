"""One colour per method, in every picture of the room."""

from typing import Any

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


def look_of(method: str) -> dict[str, Any]:
    """How a method's line is drawn: a control broad and pale, below the thin line of a network that lies on it."""
    control = method in CONTROLS
    return {
        "color": colour_of(method),
        "linewidth": 4 if control else 1.2,
        "alpha": 0.5 if control else 1,
        "zorder": 2 if control else 3,
    }


def methods_of(table: pd.DataFrame) -> list[str]:
    """The methods of a table in the order of their first rows."""
    return list(dict.fromkeys(table["method"]))
