"""The pictures of an audit."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from subspacelab.core.errors import SettingError
from subspacelab.plotting.figures import colour_and_marker, drawn_name, log_if_positive, open_figure, say
from subspacelab.rotation.auditing import Audit

PICTURES = {"updates": "audit_updates.png", "spectra": "audit_spectra.png"}
"""Kinds of picture in `Audit.plot`, which also name the files."""
SHADE = "#d9d9d9"
PANELS = {
    "relative_norm": "‖D‖ / ‖W‖ (Frobenius)",
    "leading_energy": "energy in the leading-k frame\n/ random (dashed: 1, grey: 5 deviations)",
    "trailing_energy": "energy in the trailing-k frame\n/ random (dashed: 1, grey: 5 deviations)",
    "stable_rank": "stable rank of D",
}


def draw_audit(audit: Audit, kind: str, path: Path | None = None) -> Figure:
    """One of `PICTURES` as a figure, written to `path` if given; SettingError for another kind."""
    if kind not in PICTURES:
        raise SettingError(f"plot {kind!r} of an audit: allowed are {', '.join(PICTURES)}")
    title = drawn_name(str(audit.metrics["adapter"]["reference"]))
    if kind == "spectra":
        with open_figure(path, (7, 4.2)) as figure:
            _draw_spectra(figure.subplots(), audit)
            figure.suptitle(f"Singular values of the updates of {title}", fontsize=11)
        return figure
    with open_figure(path, (max(7.0, 0.4 * audit.layers["module"].nunique() + 5), 6.4)) as figure:
        for axes, (column, label) in zip(figure.subplots(2, 2, sharex=True).flat, PANELS.items(), strict=True):
            _draw_modules(axes, audit, column)
            axes.set_ylabel(label)
        figure.suptitle(f"The updates of {title}, a point per weight", fontsize=11)
    return figure


def draw_audit_pictures(folder: Path, audit: Audit) -> tuple[Path, ...]:
    """Draws all `PICTURES` to `folder`; returns the files."""
    for kind, name in PICTURES.items():
        draw_audit(audit, kind, folder / name)
    return tuple(folder / name for name in PICTURES.values())


def _draw_modules(axes: Axes, audit: Audit, column: str) -> None:
    """A column of points per module; for energies, grey bars of five deviations of random updates."""
    layers = audit.layers
    modules = list(dict.fromkeys(layers["module"]))
    axes.set_xticks(range(len(modules)), [drawn_name(module) for module in modules], rotation=40, ha="right")
    if layers[column].isna().all():
        say(axes, "empty: k is more than half\nof the directions")
        return
    is_energy, shown = column.endswith("energy"), [value for value in layers[column] if value > 0]
    for i, module in enumerate(modules):
        rows = layers[layers["module"] == module]
        colour, marker = colour_and_marker(i)
        axes.plot(np.full(len(rows), i), rows[column], marker, color=colour, alpha=0.6)
        if is_energy:
            spread = 5 * rows[f"{column}_null_std"].max()
            # From far below, as the axis is logarithmic and cuts it off.
            axes.fill_between(
                [i - 0.3, i + 0.3], max(1e-30, 1 - spread), 1 + spread, color=SHADE, linewidth=0, zorder=0
            )
            shown += [1.0, 1 + spread]
    if is_energy:
        axes.axhline(1, color="black", linewidth=0.9, linestyle="--")
    log_if_positive(axes, shown, plain=True)
    if shown:
        axes.set_ylim(min(shown) / 1.3, max(shown) * 1.3)


def _draw_spectra(axes: Axes, audit: Audit) -> None:
    """A line per weight, coloured by module."""
    modules = list(dict.fromkeys(audit.layers["module"]))
    drawn: list[float] = []
    for row in audit.layers.itertuples():
        i = modules.index(str(row.module))
        values = audit.spectra[str(row.weight)].tolist()
        label = (
            drawn_name(modules[i]) if row.Index == audit.layers.index[audit.layers["module"] == modules[i]][0] else None
        )
        axes.plot(range(1, len(values) + 1), values, color=colour_and_marker(i)[0], alpha=0.7, linewidth=1, label=label)
        drawn += [value for value in values if value > 1e-12 * values[0]]
    log_if_positive(axes, drawn)
    if drawn:
        axes.set_ylim(bottom=min(drawn) / 2)
    axes.set_xlabel("index")
    axes.set_ylabel("singular value of D")
    handles = [Line2D([], [], color=colour_and_marker(i)[0], label=drawn_name(m)) for i, m in enumerate(modules)]
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.01, 0.5))
