import subprocess
import sys
import warnings
from pathlib import Path

import matplotlib
import pytest

from subspacelab.plotting.figures import (
    COLOURS,
    colour_and_marker,
    count_along,
    drawn_name,
    grid_of,
    log_if_positive,
    open_figure,
    say,
)


def draw(path: Path) -> bytes:
    with open_figure(path, (3, 2)) as figure:
        axes = figure.subplots()
        axes.plot([0, 1, 2], [0.1, 1.0, 10.0])
        log_if_positive(axes, [0.1, 1.0, 10.0], plain=True)
        assert axes.get_yscale() == "log"
    return path.read_bytes()


def test_equal_data_are_equal_bytes_whatever_the_user_has_set(tmp_path: Path) -> None:
    first = draw(tmp_path / "a.png")
    with matplotlib.rc_context({"font.size": 30, "axes.grid": False}):
        second = draw(tmp_path / "b.png")
        assert matplotlib.rcParams["font.size"] == 30
    assert first == second
    assert b"Software" not in first


def test_a_figure_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), open_figure(tmp_path / "a.png", (3, 2)):
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


def test_pyplot_is_never_imported() -> None:
    code = "import sys, subspacelab.plotting.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("name", "drawn"),
    [
        ("model.layers.0", "model.layers.0"),
        (r"$\frac{$", r"\$\frac{\$"),
        ("a$b", r"a\$b"),
        ("[/x]", "[/x]"),
        ("_hidden", " _hidden"),
        ("a\x1b[31m\nb", "a?[31m?b"),
        ("x" * 30 + "y" * 300, "x" * 24 + "…" + "y" * 24),
        ("中文", "中文"),
    ],
)
def test_names_from_outside_are_drawn_as_they_are(name: str, drawn: str, tmp_path: Path) -> None:
    assert drawn_name(name) == drawn
    with warnings.catch_warnings(), open_figure(tmp_path / "a.png", (8, 6)) as figure:
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="Glyph")  # as open_figure itself does
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], label=drawn_name(name))
        axes.set_title(drawn_name(name))
        axes.set_xticks([0, 1], [drawn_name(name)] * 2, rotation=40)
        axes.legend()
        figure.canvas.draw()


def test_nothing_positive_stays_linear(tmp_path: Path) -> None:
    with open_figure(tmp_path / "a.png", (3, 2)) as figure:
        axes = figure.subplots()
        log_if_positive(axes, [0.0, float("nan")])
        say(axes, "nothing")
        assert axes.get_yscale() == "linear"
        assert [t.get_text() for t in axes.texts] == ["nothing"]


@pytest.mark.parametrize(("panels", "grid"), [(1, (1, 1)), (4, (1, 4)), (5, (2, 4)), (12, (3, 4)), (0, (0, 1))])
def test_grids_hold_all_panels(panels: int, grid: tuple[int, int]) -> None:
    assert grid_of(panels, 4) == grid


def test_no_two_of_the_first_curves_look_alike_and_later_ones_come_round() -> None:
    assert len({colour_and_marker(i) for i in range(len(COLOURS))}) == len(COLOURS)
    assert colour_and_marker(len(COLOURS)) == colour_and_marker(0)


def test_what_is_counted_has_whole_numbers_as_ticks(tmp_path: Path) -> None:
    with open_figure(tmp_path / "a.png", (3, 2)) as figure:
        axes = figure.subplots()
        axes.plot([0, 1, 2], [0, 1, 2])
        assert any(tick % 1 for tick in axes.get_xticks())
        count_along(axes)
        assert not any(tick % 1 for tick in axes.get_xticks())
