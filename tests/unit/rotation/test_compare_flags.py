"""Flags of `rotation compare` that are a number or a word, or words of a list."""

from typing import Any

import pytest
from typer.testing import CliRunner

from subspacelab.core.errors import SettingError
from subspacelab.rotation.commands import app

COMMAND = ["compare", "no/such/a", "no/such/b", "--output-dir", "out", "--no-track"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--null", "auto", "--null-model", "spectrum", "--null-model", "permuted"], "no/such/a: no such checkpoint"),
        (["--null", "0"], "no/such/a: no such checkpoint"),
        (["--null", "some"], "compare.null_draws: must be a valid integer, or 'auto', got 'some'"),
        (["--null", "-1"], "compare.null_draws: must be greater than or equal to 0, or 'auto', got -1"),
        (["--null-model", "gauss"], "compare.null_models.0: must be 'spectrum' or 'permuted', got 'gauss'"),
    ],
)
def test_numbers_words_and_lists(flags: list[str], said: str) -> None:
    found: Any = CliRunner().invoke(app, [*COMMAND, *flags]).exception
    assert isinstance(found, ValueError | SettingError)
    assert said in str(found)


def test_help_says_what_may_be_given() -> None:
    text = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["compare", "--help"]).output
    assert "N|auto" in text
    assert "spectrum|permuted" in text
