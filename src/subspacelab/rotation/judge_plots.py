"""The picture of evaluated updates."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from subspacelab.plotting.figures import COLOURS, GREY, open_figure, say
from subspacelab.rotation.judgement import Judgement

LOOKS = {False: (COLOURS[0], "o", "update"), True: (COLOURS[1], "s", "random, equal norm")}
"""Whether it is random -> colour, marker and label."""
PARTS = {"rotation": "directions\nalone", "spectrum": "singular values\nalone"}
PREDICTIONS = {
    "snapshot": (COLOURS[3], "D", "these weights"),
    "predicted": (COLOURS[2], "^", "end, straight on by steps"),
    "predicted_by_rate": (COLOURS[4], "v", "end, by learning rate"),
}


def draw_judgement(judgement: Judgement, path: Path | None = None, score: str = "mean score") -> Figure:
    """Score against rank and scale, for parts of the update and for predictions; written to `path` if given.

    Dotted: the base; dashed: the tuned checkpoint. Bars: standard error of the paired gain over the base.
    """
    with open_figure(path, (12.5, 3.6)) as figure:
        panels = figure.subplots(1, 4)
        for axes in panels[1:3]:  # predictions fall far below what parts do
            axes.sharey(panels[0])
        for axes, draw in zip(panels, (_draw_ranks, _draw_scales, _draw_parts, _draw_predictions), strict=True):
            if judgement.table.empty:
                say(axes, "nothing to judge")
            else:
                _draw_ends(axes, judgement.table)
                draw(axes, judgement.table)
        panels[0].set_ylabel(score)
    return figure


def _rows(table: pd.DataFrame, family: str, *, is_random: bool = False) -> pd.DataFrame:
    return table[(table["family"] == family) & (table["is_random"] == is_random)]


def _draw_ends(axes: Axes, table: pd.DataFrame) -> None:
    """Draws lines at the base and at the tuned checkpoint."""
    plain = _rows(table, "scale")
    for scale, style in ((0, ":"), (1, "--")):
        axes.axhline(float(plain[plain["scale"] == scale]["score"].iloc[0]), color=GREY, linestyle=style, linewidth=1)


def _draw_points(
    axes: Axes, x: Iterable[float], rows: pd.DataFrame, look: tuple[str, str, str], line: str = "-"
) -> None:
    colour, marker, label = look
    bars = rows["gain_se"]
    axes.errorbar(list(x), rows["score"], bars, color=colour, marker=marker, label=label, linestyle=line, capsize=2)


def _draw_ranks(axes: Axes, table: pd.DataFrame) -> None:
    for is_random, look in LOOKS.items():
        rows = _rows(table, "rank", is_random=is_random)
        rows = rows[rows["rank"] > 0].sort_values("rank")
        _draw_points(axes, map(float, rows["rank"]), rows, look)
    axes.set_xscale("log", base=2)
    ranks = sorted({int(k) for k in _rows(table, "rank")["rank"] if k > 0})
    axes.set_xticks(ranks, [str(k) for k in ranks])
    axes.set_xlabel("rank k")
    axes.set_title("best approximation of rank k")
    axes.legend()


def _draw_scales(axes: Axes, table: pd.DataFrame) -> None:
    plain = _rows(table, "scale")
    base = plain[plain["scale"] == 0]
    for is_random, look in LOOKS.items():
        rows = pd.concat([base, _rows(table, "scale", is_random=is_random)]).drop_duplicates("scale")
        rows = rows.sort_values("scale")
        _draw_points(axes, rows["scale"], rows, look)
    axes.set_xlabel("S")
    axes.set_title("base + S · update")


def _draw_parts(axes: Axes, table: pd.DataFrame) -> None:
    for (is_random, look), shift in zip(LOOKS.items(), (-0.1, 0.1), strict=True):
        rows = _rows(table, "part", is_random=is_random).set_index("part").loc[list(PARTS)]
        _draw_points(axes, (i + shift for i in range(len(PARTS))), rows, look, line="none")
    axes.set_xticks(range(len(PARTS)), list(PARTS.values()))
    axes.set_xlim(-0.6, len(PARTS) - 0.4)
    axes.set_title("one part alone")


def _draw_predictions(axes: Axes, table: pd.DataFrame) -> None:
    axes.set_title("predicted from earlier weights")
    if table["step"].isna().all():
        say(axes, "no earlier checkpoints")
        return
    for family, look in PREDICTIONS.items():
        rows = _rows(table, family).sort_values("step")
        _draw_points(axes, map(float, rows["step"]), rows, look)
    axes.set_xlabel("steps of the earlier weights")
    axes.legend()
