"""update_geometry.png: how large the updates are, how many directions they have, and where they lie."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from subspacelab.reports.figures import open_figure
from subspacelab.rotation.figures.bars import draw_by_group
from subspacelab.rotation.figures.style import PAIR_STYLES
from subspacelab.rotation.groups import Group

PANELS = {
    "update_norm": "‖ΔW‖ / ‖W‖ (Frobenius)",
    "update_stable_rank": "stable rank of ΔW",
    "unchanged": "share of entries unchanged",
    "principal_energy": "energy in the leading-k frame\n/ that of a random update (dashed: 1)",
}


def draw_update_geometry(path: Path, layers: pd.DataFrame, groups: Sequence[Group]) -> Path:
    """Four panels over the groups: relative norm, stable rank, unchanged share, principal energy (1 = random)."""
    with open_figure(path, (max(9.0, 0.62 * len(groups) + 3), 7.2)) as figure:
        panels = figure.subplots(2, 2, sharex=True)
        for axes, (measure, label) in zip(panels.flat, PANELS.items(), strict=True):
            log = measure != "unchanged" and _is_wide(layers, measure)
            draw_by_group(axes, layers, groups, measure, label, log=log)
            if not log:
                axes.set_ylim(bottom=0)
        panels[1][0].set_ylim(-0.03, 1.03)
        panels[1][1].axhline(1, color="black", linewidth=0.9, linestyle="--")
        figure.suptitle("The updates along the chain, and random ones of equal norm", fontsize=11)
        handles, labels = panels[0][1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5)
    return path


def _is_wide(layers: pd.DataFrame, measure: str) -> bool:
    """Whether the values span so much that only a logarithmic axis shows them all."""
    values = layers[[f"{measure}_{pair.key}" for pair in PAIR_STYLES] + [f"floor_{measure}"]].to_numpy(dtype=float)
    positive = values[values > 0]
    return len(positive) > 0 and bool(positive.max() > 4 * positive.min())
