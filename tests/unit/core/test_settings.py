"""Settings: one declaration, from which come checks, flags and schema."""

from dataclasses import field, replace
from pathlib import Path
from typing import Annotated, Literal

import pytest
import typer
from typer.testing import CliRunner

from subspacelab.core.errors import SettingError
from subspacelab.core.files import read_json
from subspacelab.core.flags import with_settings
from subspacelab.core.settings import Count, Flag, Positive, Share, settings, validate
from subspacelab.pipeline.params import params_schema, read_yaml, stage_settings


@settings
class Inner:
    """Of a part."""

    size: Count = 3
    """Its size."""


@settings
class Outer:
    """All kinds of settings."""

    data: str
    """Where from."""
    rate: Positive = 0.5
    """How fast."""
    limit: Count | None = None
    """At most."""
    kind: Literal["a", "b"] = "a"
    """Which."""
    names: list[str] | None = None
    """Whose."""
    share: Annotated[Share, Flag("--part"), Flag("--share")] = 0.25
    """How much."""
    fast: bool = True
    """Or slow."""
    dry: bool = False
    """Nothing is done."""
    sizes: list[int] = field(default_factory=lambda: [1, 2])
    """Several."""
    groups: dict[str, str] = field(default_factory=dict)
    """Of a file alone: it has no flag."""
    inner: Inner = field(default_factory=Inner)
    """The part."""
    perhaps: Inner | None = None
    """Another."""

    def __post_init__(self) -> None:
        if self.dry and self.fast:
            raise ValueError("dry: not when fast")


WRONG = [
    ({"rate": 0.0}, "rate: must be greater than 0, got 0.0"),
    ({"rate": float("inf")}, "rate: must be a finite number, got inf"),
    ({"limit": 0}, "limit: must be greater than or equal to 1, got 0"),
    ({"limit": True}, "limit: must be a valid integer, got True"),
    ({"kind": "c"}, "kind: must be 'a' or 'b', got 'c'"),
    ({"nosuch": 1}, "nosuch: no such key, got 1; allowed are ['data', 'rate'"),
    ({"dry": True}, "dry: not when fast"),
]


@pytest.mark.parametrize(("given", "said"), WRONG)
def test_what_is_wrong_is_one_line_from_python_and_from_a_file(given, said):
    for where, make in (("Outer", lambda v: Outer(**v)), ("x", lambda v: validate(Outer, v, "x"))):
        with pytest.raises(SettingError) as e:
            make({"data": "d"} | given)
        assert str(e.value).startswith(f"{where}: {said}" if said.startswith("dry") else f"{where}.{said}")
        assert "\n" not in str(e.value)


def test_what_is_missing_or_wrong_within_is_named():
    with pytest.raises(SettingError, match=r"^x\.data: .*required$"):
        validate(Outer, {}, "x")
    for name in ("inner", "perhaps"):
        assert getattr(validate(Outer, {"data": "d", name: {"size": 2}}, "x"), name) == Inner(2)
        with pytest.raises(SettingError, match=rf"x\.{name}\.sise: no such key, got 2; allowed are \['size'\]"):
            validate(Outer, {"data": "d", name: {"sise": 2}}, "x")


def test_settings_are_frozen_and_checked_when_replaced():
    with pytest.raises(AttributeError):
        Inner().size = 4  # type: ignore[misc]
    with pytest.raises(SettingError, match="Inner.size"):
        replace(Inner(), size=0)


def called(*arguments: str) -> tuple[int, str, list[Outer]]:
    got: list[Outer] = []
    app = typer.Typer()

    @app.command()
    @with_settings(Outer)
    def act(first: str = "f", *, settings: Outer, last: str = "l") -> None:
        got.append(settings)

    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, list(arguments))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output, got


def test_flags_are_the_fields_with_their_defaults():
    assert called("--data", "d") == (0, "", [Outer("d")])
    code, _, [found] = called(
        *("--data", "d", "--rate", "2", "--limit", "7", "--kind", "b", "--names", "x", "--names", "y"),
        *("--part", "0.5", "--no-fast", "--dry", "--inner-size", "9"),
    )
    wanted = Outer("d", 2.0, 7, "b", ["x", "y"], 0.5, fast=False, dry=True, inner=Inner(9))
    assert (code, found) == (0, wanted)
    assert called("--data", "d", "--share", "0.5")[2] == [Outer("d", share=0.5)]
    assert called("--data", "d", "--sizes", "4", "--sizes", "5")[2] == [Outer("d", sizes=[4, 5])]


def test_the_help_has_sentence_bounds_and_default():
    _, help_text, _ = called("--help")
    said = (
        "How much. (at least 0, at most 1)",
        "(above 0)",
        "(at least 1)",
        "a|b",
        "default: 0.25",
        "Its size.",
        "--no-fast",
    )
    for word in said:
        assert word in help_text, word
    assert "Of a file alone" not in help_text
    assert help_text.index("--first") < help_text.index("--data") < help_text.index("--last")


def test_wrong_flags_are_refused():
    assert called()[0] == 2  # data is missing
    assert called("--data", "d", "--limit", "many")[0] == 2
    with pytest.raises(SettingError, match=r"^act\.limit: must be greater than or equal to 1, got 0$"):
        called("--data", "d", "--limit", "0")
    with pytest.raises(SettingError, match=r"^act\.kind: must be 'a' or 'b', got 'c'$"):
        called("--data", "d", "--kind", "c")
    with pytest.raises(SettingError, match=r"^act\.rate: must be greater than 0, got -1\.0$"):
        called("--data", "d", "--rate", "-1")


def test_the_schema_of_params_is_current():
    """`python -m subspacelab.pipeline.params` writes it."""
    assert read_json(Path("params.schema.json")) == params_schema()
    assert Path("params.yaml").read_text().startswith("# yaml-language-server: $schema=params.schema.json\n")


def test_every_section_is_of_a_stage_and_every_field_says_what_it_is():
    sections = set(read_yaml(Path("params.yaml"))) - {"study", "rank", "seed", "threads"}
    assert sections == set(stage_settings())
    schema = params_schema()
    for name, section in (schema["properties"] | schema["$defs"]).items():
        for key, facts in section.get("properties", {}).items():
            assert facts.get("description", "").endswith("."), (name, key)
