"""spectra.png: the singular values hardly move while the vectors turn."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from subspacelab.reports.figures import COLOURS, drawn_name, grid_of, log_if_positive, open_figure
from subspacelab.rotation.chain import Chain
from subspacelab.rotation.figures.bars import draw_by_group
from subspacelab.rotation.groups import Group

MAX_PANELS = 8
LineStyle = Literal["-", "--", ":"]
STAGES: tuple[tuple[str, str, LineStyle, float], ...] = (
    ("base", "#000000", "-", 2.4),
    ("stage 1", COLOURS[4], "--", 1.6),
    ("stage 2", COLOURS[5], ":", 1.6),
)


def draw_spectra(path: Path, layers: pd.DataFrame, groups: Sequence[Group], chain: Chain) -> Path:
    """Singular values over the base's largest for the middle weight of some groups, and the shift of every group."""
    chosen = [groups[i] for i in sorted({*np.linspace(0, len(groups) - 1, MAX_PANELS).round().astype(int)})]
    rows, columns = grid_of(len(chosen), 4)
    with open_figure(path, (2.9 * max(3, columns) + 0.4, 2.3 * rows + 4.2)) as figure:
        halves = figure.subfigures(2, 1, height_ratios=[2.3 * rows, 3.6], squeeze=False)
        upper, lower = halves[0, 0], halves[1, 0]
        panels = upper.subplots(rows, columns, squeeze=False, sharey=True)
        for axes, group in zip(panels.flat, chosen, strict=False):
            name = list(group.members)[len(group.members) // 2]
            _draw_spectrum(axes, chain, name)
            layer = group.members[name]
            axes.set_title(drawn_name(group.label) + ("" if layer is None else f", layer {layer}"))
        for axes in panels.flat[len(chosen) :]:
            axes.set_axis_off()
        for row in panels:
            row[0].set_ylabel("σᵢ / σ₁ of base")
        for axes in panels[-1]:
            axes.set_xlabel("index i / rank")
        upper.suptitle("Singular values along the chain", fontsize=11)
        handles = [
            Line2D([], [], color=colour, linestyle=line, linewidth=width, label=stage)
            for stage, colour, line, width in STAGES
        ]
        upper.legend(handles=handles, loc="outside lower center", ncols=3)
        draw_by_group(lower.subplots(), layers, groups, "nss", "normalised spectral shift", log=True, legend=True)
    return path


def _draw_spectrum(axes: Axes, chain: Chain, name: str) -> None:
    spectra = [checkpoint.spectrum(name).double() for checkpoint in chain.checkpoints]
    scale = spectra[0][0].item() or 1.0
    position = (np.arange(len(spectra[0])) + 1) / len(spectra[0])
    for values, (_, colour, line, width) in zip(spectra, STAGES, strict=True):
        axes.plot(position, values.numpy() / scale, color=colour, linestyle=line, linewidth=width)
    log_if_positive(axes, spectra[0].tolist(), plain=True)
