"""Command-line flags generated from settings: a class of settings declares type, default, bounds and help once."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import wraps
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer
from pydantic import TypeAdapter

from subspacelab.core import settings
from subspacelab.core.settings import Flag, inner_settings, schema_of, validate


def _number(kind: Any, help: str) -> Any:
    """A flag for a whole number with the bounds of `kind`, one of the kinds of number in `core.settings`."""
    facts = TypeAdapter(kind).json_schema()
    return typer.Option(min=facts["minimum"], max=facts.get("maximum"), help=help)


Track = Annotated[bool, typer.Option("--track/--no-track", help="Record the run in MLflow.")]
Rank = Annotated[int, _number(settings.Count, "Rank of the approximation.")]
Seed = Annotated[int, _number(settings.Seed, "Seed of every random draw: starts, order, windows, splits.")]


def with_settings(config: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replaces a command's parameter `settings` by one flag for each field of `config`.

    The command is called with `settings`, an instance of `config`. Mappings, and nested settings that may be None, get
    no flag.
    """
    flags = {flag.name: flag for flag in _flags(config)}

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @wraps(function)
        def command(**given: Any) -> None:
            values = {name: given.pop(name) for name in flags}
            function(**given, settings=validate(config, _nested(config, values), where=function.__name__))

        own = inspect.signature(function, eval_str=True).parameters.values()
        parameters = [
            flag for p in own for flag in (flags.values() if p.name == "settings" else [p.replace(kind=p.KEYWORD_ONLY)])
        ]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return command

    return decorate


def _flags(config: type, prefix: str = "") -> Iterator[inspect.Parameter]:
    """The flags of a class of settings; flags of a nested class begin with the name of its field."""
    hints, schema = get_type_hints(config, include_extras=True), schema_of(config)["properties"]
    lists = {f.name: f.default_factory() for f in fields(config) if f.default_factory is not MISSING}
    for name, plain in get_type_hints(config).items():
        if is_dataclass(plain):
            yield from _flags(plain, f"{prefix}{name}_")  # type: ignore[arg-type]
        elif get_origin(plain) is not dict and inner_settings(plain) is None:
            facts = schema[name]
            names, choices = _names(prefix + name, hints[name], facts), _choices(facts)
            word = _word_for_number(plain)
            metavar = f"N|{word}" if word else "|".join(choices) if choices else None
            parser = _number_or_word if word else None
            option = typer.Option(*names, help=facts["description"] + _bounds(facts), metavar=metavar, parser=parser)
            default = facts.get("default", lists.get(name, inspect.Parameter.empty))
            annotation: Any = Annotated[_typed_as(plain, bool(choices or word)), option]
            yield inspect.Parameter(
                prefix + name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
            )


def _names(name: str, hint: Any, facts: Mapping[str, Any]) -> list[str]:
    """`--name`, or the names given by `Flag`; a switch that is on by default also has `--no-name`."""
    given = [str(mark) for mark in getattr(hint, "__metadata__", ()) if isinstance(mark, Flag)]
    flag = f"--{name.replace('_', '-')}"
    return given or [f"{flag}/--no-{flag[2:]}" if facts.get("default") is True else flag]


def _choices(facts: Mapping[str, Any]) -> list[str]:
    """The words allowed for a setting, or for each item of its list; empty if any value is allowed."""
    parts = [facts, *facts.get("anyOf", ())]
    parts += [part["items"] for part in parts if "items" in part]
    found: list[str] = next((part["enum"] for part in parts if "enum" in part), [])
    return found


def _typed_as(plain: Any, of_words: bool) -> Any:
    """The type for Typer. A setting with fixed words is text to Typer; the settings check the words."""
    if not of_words:
        return plain
    return list[str] if any(get_origin(part) is list for part in (plain, *get_args(plain))) else str


def _word_for_number(plain: Any) -> str | None:
    """The word that may replace a whole number, such as `auto` in `int | Literal["auto"]`."""
    words = [part for part in get_args(plain) if get_origin(part) is Literal]
    return str(get_args(words[0])[0]) if words and int in get_args(plain) else None


def _number_or_word(text: str) -> int | str:
    """The text as a whole number if possible; a word is returned unchanged, and the settings check it."""
    try:
        return int(text)
    except ValueError:
        return text


def _bounds(facts: Mapping[str, Any]) -> str:
    """The bounds of a number in words. The settings enforce them, with one message for flags and files."""
    of_number = next((part for part in facts.get("anyOf", ()) if part.get("type") != "null"), facts)
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    found = [f"{word} {of_number[key]:.12g}" for key, word in words.items() if key in of_number]
    return f" ({', '.join(found)})" if found else ""


def _nested(config: type, values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flat flags as nested settings."""
    found: dict[str, Any] = {}
    for name, hint in get_type_hints(config).items():
        if is_dataclass(hint):
            found[name] = _nested(hint, values, f"{prefix}{name}_")  # type: ignore[arg-type]
        elif prefix + name in values:
            value = values[prefix + name]
            found[name] = None if value == [] and type(None) in get_args(hint) else value
    return found
