"""Figures of plotly in one style, readable on light and dark backgrounds: lines with controls, points, heat maps."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import plotly.graph_objects as go

from subspacelab.plotting.figures import COLOURS, GREY
from subspacelab.report.page import Choice, Figure, text_in_figure

PALETTE = (*COLOURS[:-1], GREY, "#9467bd", "#a0713f")
"""Line colours; black is left out, since it is invisible in dark mode."""
CLEAR = "rgba(0,0,0,0)"
FAR = 2
"""Level of controls that are hidden at first, because their values are far from all others."""
MANY_DECADES = 100
"""Ratio of the largest to the smallest value from which an axis is logarithmic."""


@dataclass(frozen=True)
class Line:
    """A curve or a set of points in a figure."""

    name: str
    """Name in the legend."""
    x: Sequence[Any]
    """x values."""
    y: Sequence[float | None]
    """y values."""
    group: str = ""
    """Group that the list of the figure can show alone; lines of one group have one colour."""
    control: int = 0
    """0: measured. 1: a control, which a switch hides. 2: a control far from the rest, hidden at first."""
    legend: bool = True
    """Whether the legend names it."""
    dash: str = "solid"
    """solid, dash, dot or dashdot."""
    mode: str = "lines+markers"
    """lines, markers or both."""
    error: Sequence[float] | None = None
    """Standard deviation of y."""
    error_x: Sequence[float] | None = None
    """Standard deviation of x."""
    text: Sequence[str] | None = None
    """Additional hover text of each point."""
    colour: str | None = None
    """Colour in place of the group's."""


@cache
def template() -> go.layout.Template:
    """plotly template without a background; text and grid take the page's colours from the style sheet."""
    axis = {
        "gridcolor": "#e3e7eb",
        "zeroline": False,
        "automargin": True,
        "title": {"standoff": 8},
        "exponentformat": "power",
    }
    return go.layout.Template(
        layout={
            "paper_bgcolor": CLEAR,
            "plot_bgcolor": CLEAR,
            "colorway": PALETTE,
            "font": {"family": "system-ui, sans-serif", "size": 12, "color": "#1b1f24"},
            "margin": {"l": 12, "r": 12, "t": 32, "b": 12},
            "modebar": {"bgcolor": CLEAR, "color": GREY, "activecolor": COLOURS[0]},
            "hoverlabel": {"namelength": -1},
            "legend": {"orientation": "h", "y": -0.16, "yanchor": "top", "x": 0, "font": {"size": 11}},
            "xaxis": axis,
            "yaxis": axis,
        }
    )


def lines(found: Sequence[Line], x: str, y: str, **layout: Any) -> go.Figure:
    """A figure of lines; axes are logarithmic if `layout` says so."""
    figure = go.Figure([_trace(line, _colours(found)) for line in found])
    figure.update_layout(template=template(), xaxis_title=x, yaxis_title=y, yaxis_type=_axis_type(found), **layout)
    return figure


def choosable(
    id: str,
    title: str,
    note: str,
    views: Mapping[str, Sequence[Line]],
    x: str,
    *,
    grouped: bool = False,
    controls: Sequence[str] = (),
    **layout: Any,
) -> list[Figure]:
    """A figure that shows one of several measures, `views`, with a list to choose from; empty without a measure."""
    if not views:
        return []
    first = next(iter(views))
    drawn, choice = lines(views[first], x, text_in_figure(first), **layout), Choice("measure", "measure", list(views))
    return [Figure(id, title, note, drawn, frames_of(views), [choice], ["{measure}"], grouped, controls, free=True)]


def frames_of(views: Mapping[str, Sequence[Line]]) -> list[dict[str, Any]]:
    """A plotly frame for each view, named by its index; all views have the same lines in the same order."""
    return [
        {
            "name": str(i),
            "data": [{"x": list(line.x), "y": clean(line.y), "type": "scatter"} for line in view],
            "traces": list(range(len(view))),
            "layout": {"yaxis": {"title": {"text": text_in_figure(name)}, "type": _axis_type(view)}},
        }
        for i, (name, view) in enumerate(views.items())
    ]


def whole_numbers(x: Iterable[Any]) -> dict[str, Any]:
    """A layout with ticks only at whole numbers of the x axis: layers, blocks, epochs."""
    numbers = [float(value) for value in x if value == value]
    return {"xaxis_dtick": max(1, math.ceil((max(numbers) - min(numbers)) / 20)) if numbers else 1}


def heat_map(
    z: Sequence[Sequence[float | None]], columns: Sequence[str], rows: Sequence[str], *, limit: float, title: str
) -> go.Figure:
    """A diverging heat map around 0, with colours up to +-`limit`; hovering shows the number."""
    figure = go.Figure(
        go.Heatmap(
            z=[clean(row) for row in z],
            x=[text_in_figure(name) for name in columns],
            y=[text_in_figure(name) for name in rows],
            zmid=0,
            zmin=-limit,
            zmax=limit,
            colorscale="RdBu_r",
            xgap=1,
            ygap=1,
            colorbar={"title": {"text": title, "side": "right"}, "thickness": 12},
            hovertemplate="%{y}<br>%{x}<br>%{z:.3~g}<extra></extra>",
        )
    )
    figure.update_layout(template=template(), xaxis={"tickangle": -60, "showgrid": False})
    figure.update_yaxes(autorange="reversed", showgrid=False)
    return figure


def clean(values: Sequence[Any]) -> list[float | None]:
    """Numbers with six digits, which look the same; None for values that are not finite."""
    floats = [None if value is None else float(value) for value in values]
    return [None if value is None or not math.isfinite(value) else float(f"{value:.6g}") for value in floats]


def _trace(line: Line, colours: Mapping[str, str]) -> go.Scatter:
    colour = line.colour or colours[line.group]
    bars = {
        f"error_{axis}": {"array": clean(values), "thickness": 1, "width": 3}
        for axis, values in {"x": line.error_x, "y": line.error}.items()
        if values is not None
    }
    return go.Scatter(
        name=text_in_figure(line.name),
        x=list(line.x),
        y=clean(line.y),
        mode=line.mode,
        line={"color": colour, "dash": line.dash, "width": 1.2 if line.control else 2},
        marker={"color": colour, "size": 5 if line.control else 7},
        opacity=0.65 if line.control else 1,
        visible=line.control < FAR,
        showlegend=line.legend,
        text=None if line.text is None else [text_in_figure(each) for each in line.text],
        legendgroup=text_in_figure(line.group) or None,
        meta={"group": line.group, "control": line.control},
        **bars,
    )


def _colours(found: Sequence[Line]) -> dict[str, str]:
    groups = dict.fromkeys(line.group for line in found)
    return {group: PALETTE[i % len(PALETTE)] for i, group in enumerate(groups)}


def _axis_type(found: Sequence[Line]) -> str:
    """log if all values are positive and span many decades."""
    values = [value for line in found for value in clean(line.y) if value is not None]
    return "log" if values and min(values) > 0 and max(values) > MANY_DECADES * min(values) else "linear"
