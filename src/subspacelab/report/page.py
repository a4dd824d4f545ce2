"""The parts of a page, and its rendering as one HTML file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from plotly.graph_objects import Figure as PlotlyFigure

LARGEST = 8_000_000
"""Largest size of a page in bytes, which mail and MLflow's artifact view still accept."""
MAX_ROWS = 2000
MAX_CELLS = 40_000
"""Largest number of cells in a table; a larger table keeps only its main columns."""
CONFIG = {
    "responsive": True,
    "displaylogo": False,
    "showSendToCloud": False,  # on by default in plotly.js 4: a button that uploads the data
    "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d"],
}


@dataclass(frozen=True)
class Headline:
    """A number of the summary with its control."""

    label: str
    """Name of the number."""
    value: str
    """The number as shown."""
    beside: str
    """Its control, in words."""
    metric: str = ""
    """Its name in metrics.json, in `dvc exp show` and in MLflow."""


@dataclass(frozen=True)
class Choice:
    """A control of a figure: a list to choose from, or a slider."""

    name: str
    """Its name in braces in the names of frames."""
    label: str
    """Text before it."""
    values: Sequence[str]
    """The options; frames are named by their index."""
    slider: bool = False
    """Whether it is a slider rather than a list."""
    start: int = 0
    """Index of the option that is selected at first."""


@dataclass(frozen=True)
class Figure:
    """A plotly figure with its controls."""

    id: str
    """Id of its element: unique in the page, and the same in every run."""
    title: str
    """One line."""
    note: str
    """How to read it."""
    figure: "PlotlyFigure"
    """The figure itself."""
    frames: Sequence[Mapping[str, Any]] = ()
    """The frames that the choices select, in the form of plotly.js: name, data, traces, layout."""
    choices: Sequence[Choice] = ()
    """Controls."""
    chosen: Sequence[str] = ()
    """Names of the frames that the choices select, such as `{measure}`, applied one after another."""
    grouped: bool = False
    """Whether one group of lines can be shown alone."""
    controls: Sequence[str] = ()
    """Options of the list of controls, one for each level of `meta.control`, the first without controls; empty: a
    switch."""
    free: bool = False
    """Whether the y axis is fitted to the selected lines."""
    shape: str = "wide"
    """wide, tall or maps: its class in the style sheet."""

    @property
    def groups(self) -> list[str]:
        """The groups that can be shown alone, if there are several: those of the measured lines."""
        found = [t.meta["group"] for t in self.figure.data if t.meta and not t.meta["control"]]
        return list(dict.fromkeys(found)) if self.grouped and len(set(found)) > 1 else []

    @property
    def has_controls(self) -> bool:
        """Whether some lines are controls, which can be hidden."""
        return any(trace.meta and trace.meta["control"] for trace in self.figure.data)


@dataclass(frozen=True)
class Table:
    """A table that can be sorted and filtered; columns outside `main` are shown on request."""

    title: str
    """One line."""
    frame: pd.DataFrame
    """Its rows."""
    main: Sequence[str] = ()
    """Columns that are shown at first, as far as the frame has them; all if empty."""
    note: str = ""
    """How to read it."""
    folded: bool = False
    """Whether it is closed at first."""

    @property
    def columns(self) -> list[str]:
        """The frame's columns, the main ones first."""
        first = [name for name in self.main if name in self.frame]
        others = [str(name) for name in self.frame.columns if name not in first]
        return first if first and self.frame.size > MAX_CELLS else first + others

    @property
    def num_main(self) -> int:
        """Number of `columns` that are shown at first."""
        return sum(name in self.frame for name in self.main) or len(self.frame.columns)

    @property
    def rows(self) -> list[list[str]]:
        """The cells as text, at most `MAX_ROWS` rows."""
        return [
            [shown(value) for value in row] for row in self.frame[self.columns].head(MAX_ROWS).itertuples(index=False)
        ]


@dataclass(frozen=True)
class Section:
    """The page's section on one study."""

    name: str
    """Name of the study, and its anchor."""
    question: str
    """The question of the study, in one sentence."""
    sentences: Sequence[str] = ()
    """The summary, with its numbers."""
    headlines: Sequence[Headline] = ()
    """The numbers behind the summary."""
    blocks: Sequence[Figure | Table] = ()
    """Figures and tables, in order."""
    missing: Sequence[str] = ()
    """Sentences that name missing results and how to make them."""
    origin: Sequence[Table] = field(default_factory=tuple)
    """Commands, parameters and files."""


@dataclass(frozen=True)
class Page:
    """The content of the page."""

    title: str
    """Title of the page."""
    sections: Sequence[Section]
    """One section per study."""
    origin: Sequence[Table]
    """Versions, commit and other facts for all sections."""


def shown(value: Any) -> str:
    """A cell: four significant digits; empty for a missing value."""
    if value is None or value is pd.NA or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def render(page: Page) -> str:
    """The page as HTML; ValueError if it is larger than `LARGEST`."""
    from plotly.offline import get_plotlyjs

    environment = _environment()
    text: str = environment.get_template("page.html").render(page=page, plotly=get_plotlyjs())
    size = len(text.encode("utf-8"))
    if size > LARGEST:
        raise ValueError(
            f"the page takes {size / 1e6:.1f} MB, at most {LARGEST / 1e6:g} can be sent; "
            "set report.pictures or report.channels lower, or name fewer studies"
        )
    return text


def _environment() -> Any:
    """Jinja environment that escapes all content of files; style and script come from the package."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    def read(name: str) -> str:
        return (files(__package__) / name).read_text(encoding="utf-8")

    environment = Environment(
        loader=FunctionLoader(read), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals["include_raw"] = lambda name: Markup(read(name))
    environment.globals["raw"] = Markup
    environment.filters["plot"] = lambda figure: Markup(_html_of(figure))
    return environment


def _html_of(figure: Figure) -> str:
    """The element of a figure and its script; plotly escapes everything that could end the script."""
    from plotly.io import json, to_html

    drawn = figure.figure.to_dict() | {"frames": list(figure.frames)}
    options: dict[str, Any] = {"full_html": False, "include_plotlyjs": False, "auto_play": False, "validate": False}
    options["config"] = CONFIG | {"toImageButtonOptions": {"filename": figure.id}}
    engine, json.config.default_engine = (
        json.config.default_engine,
        "json",
    )  # orjson, where installed, writes other bytes
    try:
        made: str = to_html(drawn, div_id=figure.id, **options)
    finally:
        json.config.default_engine = engine
    return made


def text_in_figure(name: object) -> str:
    """A name from a file as plain text in a figure; plotly would interpret tags and formulas."""
    plain = "".join(c if c.isprintable() else "?" for c in str(name))
    return escape(plain if len(plain) <= 60 else f"{plain[:29]}…{plain[-30:]}").replace("$", "&#36;")
