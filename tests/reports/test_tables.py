import io

from rich.console import Console

from subspacelab.reports.tables import print_table, show_number


def test_numbers_are_short_and_absent_ones_a_dash() -> None:
    assert show_number(0.0123456) == "0.0123"
    assert show_number(1.5e-12, 2) == "1.5e-12"
    assert show_number(None) == show_number(float("nan")) == "-"


def test_a_table_shows_every_cell() -> None:
    out = io.StringIO()
    print_table("a title", ["name", "value"], [["x", "1"], ["y", "2"]], console=Console(file=out, width=80))
    assert all(cell in out.getvalue() for cell in ("a title", "name", "value", "x", "1", "y", "2"))
