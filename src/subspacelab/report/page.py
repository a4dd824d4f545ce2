"""What a page is made of, and how it becomes one HTML file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from plotly.graph_objects import Figure as PlotlyFigure

LARGEST = 8_000_000
"""Bytes of a page: what mail and MLflow's artifact view still take."""
MAX_ROWS = 2000
MAX_CELLS = 40_000
"""Of a table: one that has more keeps its main columns alone."""
CONFIG = {
    "responsive": True,
    "displaylogo": False,
    "showSendToCloud": False,  # on by default in plotly.js 4: a button that uploads the data
    "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d"],
}


@dataclass(frozen=True)
class Headline:
    """A number of the summary beside what it is read against."""

    label: str
    """What it is."""
    value: str
    """The number as it is shown."""
    beside: str
    """Its control, in words."""
    metric: str = ""
    """Its name in metrics.json, in `dvc exp show` and in MLflow."""


@dataclass(frozen=True)
class Choice:
    """A control of a figure: a list to choose from, or a slider."""

    name: str
    """As the names of frames have it in braces."""
    label: str
    """Shown before it."""
    values: Sequence[str]
    """What there is to choose; frames are named by the index."""
    slider: bool = False
    """A slider rather than a list."""
    start: int = 0
    """Index of what is chosen at first."""


@dataclass(frozen=True)
class Figure:
    """A figure of plotly with its controls."""

    id: str
    """Of its element: unique in the page, and the same each time."""
    title: str
    """One line."""
    note: str
    """How to read it."""
    figure: "PlotlyFigure"
    """What is drawn."""
    frames: Sequence[Mapping[str, Any]] = ()
    """What the choices change, as plotly.js has it: name, data, traces, layout."""
    choices: Sequence[Choice] = ()
    """Controls."""
    chosen: Sequence[str] = ()
    """Names of the frames that the choices select, such as `{measure}`, drawn one after another."""
    grouped: bool = False
    """Whether one group of lines can be shown alone."""
    controls: Sequence[str] = ()
    """What the list of controls is called at each level of `meta.control`, from none on; a switch where it is empty."""
    free: bool = False
    """Whether the y axis fits what is chosen."""
    shape: str = "wide"
    """wide, tall or maps: its class, which the style sheet sizes."""

    @property
    def groups(self) -> list[str]:
        """What can be shown alone, where there is more than one: the measured lines' groups."""
        found = [t.meta["group"] for t in self.figure.data if t.meta and not t.meta["control"]]
        return list(dict.fromkeys(found)) if self.grouped and len(set(found)) > 1 else []

    @property
    def has_controls(self) -> bool:
        """Whether some traces are controls, which can be hidden."""
        return any(trace.meta and trace.meta["control"] for trace in self.figure.data)


@dataclass(frozen=True)
class Table:
    """A table that can be sorted and filtered; columns besides `main` are shown on request."""

    title: str
    """One line."""
    frame: pd.DataFrame
    """Its rows."""
    main: Sequence[str] = ()
    """Columns shown at once, of those that the frame has; all if empty."""
    note: str = ""
    """How to read it."""
    folded: bool = False
    """Closed at first."""

    @property
    def columns(self) -> list[str]:
        """The frame's columns, the main ones first."""
        first = [name for name in self.main if name in self.frame]
        others = [str(name) for name in self.frame.columns if name not in first]
        return first if first and self.frame.size > MAX_CELLS else first + others

    @property
    def num_main(self) -> int:
        """How many of `columns` are shown at once."""
        return sum(name in self.frame for name in self.main) or len(self.frame.columns)

    @property
    def rows(self) -> list[list[str]]:
        """The cells as they are shown, at most `MAX_ROWS` rows."""
        return [
            [shown(value) for value in row] for row in self.frame[self.columns].head(MAX_ROWS).itertuples(index=False)
        ]


@dataclass(frozen=True)
class Section:
    """What the page says of one study."""

    name: str
    """The study's, and its anchor."""
    question: str
    """What the study asks, in one sentence."""
    sentences: Sequence[str] = ()
    """The summary, with its numbers."""
    headlines: Sequence[Headline] = ()
    """The numbers that carry it."""
    blocks: Sequence[Figure | Table] = ()
    """Figures and tables in their order."""
    missing: Sequence[str] = ()
    """Sentences on what is not there, and what makes it."""
    origin: Sequence[Table] = field(default_factory=tuple)
    """Commands, parameters and files."""


@dataclass(frozen=True)
class Page:
    """Everything that is on the page."""

    title: str
    """Of the page."""
    sections: Sequence[Section]
    """One for each study."""
    origin: Sequence[Table]
    """Versions, commit and what holds for all sections."""


def shown(value: Any) -> str:
    """A cell: four significant digits, nothing for a missing value."""
    if value is None or value is pd.NA or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def render(page: Page) -> str:
    """The page as HTML; a ValueError if it is larger than `LARGEST`."""
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
    """Jinja with everything escaped that a file may hold; style and script are the package's own."""
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
    """The element of a figure and the script that draws it; plotly escapes what could end that script."""
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
    """A name from a file as text in a figure, where plotly would read tags and formulas."""
    plain = "".join(c if c.isprintable() else "?" for c in str(name))
    return escape(plain if len(plain) <= 60 else f"{plain[:29]}…{plain[-30:]}").replace("$", "&#36;")
