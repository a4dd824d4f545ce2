import io
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from subspacelab.core.files import write_csv
from subspacelab.plotting.terminal import print_table, show_number


def test_numbers_are_short_and_absent_ones_a_dash() -> None:
    assert show_number(0.0123456) == "0.0123"
    assert show_number(1.5e-12, 2) == "1.5e-12"
    assert show_number(None) == show_number(float("nan")) == "-"


def test_a_table_shows_every_cell() -> None:
    out = io.StringIO()
    print_table("a title", ["name", "value"], [["x", "1"], ["y", "2"]], console=Console(file=out, width=80))
    assert all(cell in out.getvalue() for cell in ("a title", "name", "value", "x", "1", "y", "2"))


def test_a_narrow_terminal_folds_names_and_no_number() -> None:
    out = io.StringIO()
    print_table("t", ["weight", *"abcdefg"], [["w" * 60, *["-1.2345e-14"] * 7]], console=Console(file=out, width=40))
    assert out.getvalue().count("-1.2345e-14") == 7
    assert out.getvalue().count("w") == 60 + 1


def test_a_table_comes_closer_before_it_is_too_wide_and_keeps_words_whole() -> None:
    rows = [["language gate", *["0.0001"] * 7], ["token embedding", *["1.5e-13"] * 7]]
    columns = ["group", "half ulp", *["half ulp", "energy"] * 3]
    out = {width: io.StringIO() for width in (80, 160)}
    for width, file in out.items():
        print_table("t", columns, rows, console=Console(file=file, width=width))
        assert max(map(len, file.getvalue().splitlines())) <= width
    lines = out[80].getvalue().splitlines()
    assert sum("language gate" in line and line.count("0.0001") == 7 for line in lines) == 1
    assert all("energy" in text.getvalue() for text in out.values())


def test_names_are_shown_and_not_obeyed() -> None:
    names = ["[/x]", "[bold]y[/bold]", "$\\frac{$", "a\x1b[2Jb\nc\u202ed", ":smile:"]
    out = io.StringIO()
    print_table(names[0], names, [names], console=Console(file=out, width=200))
    shown = [*names[:3], r"a\x1b[2Jb c\u202ed", ":smile:"]
    assert all(out.getvalue().count(name) >= 2 for name in shown)


def test_a_csv_is_read_back_and_ends_its_lines_alike_everywhere(tmp_path: Path) -> None:
    table = pd.DataFrame({"weight": ["q, k", "v"], "mse": [0.1, 1e-300]})
    write_csv(tmp_path / "new" / "a.csv", table)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "new" / "a.csv"), table, check_exact=True)
    assert (tmp_path / "new" / "a.csv").read_bytes() == b'weight,mse\n"q, k",0.1\nv,1e-300\n'


def test_a_csv_that_fails_leaves_nothing(tmp_path: Path) -> None:
    class Odd:
        def __str__(self) -> str:
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        write_csv(tmp_path / "a.csv", pd.DataFrame({"a": [Odd()]}))
    assert list(tmp_path.iterdir()) == []
