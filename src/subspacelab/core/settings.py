"""Settings: declared once as a frozen dataclass with a docstring for each field, and fully checked.

Command-line flags (`core.flags`), the check of params.yaml and its JSON schema (`pipeline.params`) are generated from
it.
"""

import json
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, TypeVar, dataclass_transform, get_args, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from subspacelab.core.errors import SettingError

T = TypeVar("T")

Natural = Annotated[int, Field(ge=0)]
"""0, 1, 2, ..."""
Count = Annotated[int, Field(ge=1)]
"""1, 2, 3, ..."""
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""A finite number above 0."""
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""A finite number, 0 or above."""
Share = Annotated[float, Field(ge=0, le=1)]
"""A number from 0 to 1."""
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
"""A seed that torch, NumPy and transformers all accept."""


class Flag(str):
    """In a field's `Annotated`: the name of its flag on the command line, if it is not the field's own name."""


@dataclass_transform(frozen_default=True)
def settings(cls: type[T]) -> type[T]:
    """Makes a class of settings a frozen dataclass; the docstring below a field is its help in flags and schema.

    An unknown field, a wrong type or a value out of bounds raises a SettingError of one line.
    """
    config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)
    made: Any = dataclass(cls, frozen=True, config=config)
    checked = made.__init__

    def __init__(self: Any, *args: Any, **given: Any) -> None:
        try:
            checked(self, *args, **given)
        except ValidationError as e:
            raise SettingError(_said(e, cls, cls.__name__)) from e

    made.__init__ = __init__
    return made


def schema_of(kind: type) -> dict[str, Any]:
    """JSON schema (2020-12) of a class of settings, with the docstrings of inherited fields, which pydantic omits."""
    schema = TypeAdapter(kind).json_schema()
    for base in kind.__mro__[1:-1]:
        for name, facts in TypeAdapter(base).json_schema()["properties"].items():
            if "description" in facts:
                schema["properties"][name].setdefault("description", facts["description"])
    return schema


def validate(kind: type[T], values: dict[str, Any], where: str) -> T:
    """`values` as an instance of `kind`, or a one-line SettingError that names the key and the value."""
    if is_dataclass(kind):
        _require_known(kind, values, where)
    try:
        # As JSON, for in strict mode only JSON may stand for a dataclass or a tuple.
        return TypeAdapter(kind).validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as e:
        if e.errors()[0]["type"] == "json_invalid":  # half a surrogate pair: how Python keeps bytes that are no text
            bad = next(
                f"{name}={value!a}" for name, value in values.items() if "\\ud" in json.dumps(value, default=str)
            )
            raise SettingError(
                f"{where}: {bad} is not valid text in this locale; rename it, or set PYTHONUTF8=1"
            ) from e
        raise SettingError(_said(e, kind, where)) from e


def _require_known(kind: Any, values: dict[str, Any], where: str) -> None:
    """SettingError for a key that `kind`, or a dataclass nested in it, does not have; pydantic would drop most."""
    allowed = [f.name for f in fields(kind)]
    for key in sorted(values.keys() - set(allowed)):
        raise SettingError(f"{where}.{key}: no such key, got {values[key]!r}; allowed are {allowed}")
    for name, hint in get_type_hints(kind).items():
        within = inner_settings(hint)
        if within is not None and isinstance(values.get(name), dict):
            _require_known(within, values[name], f"{where}.{name}")


def _said(e: ValidationError, kind: type, where: str) -> str:
    """The first problem in one line."""
    problem, *others = e.errors()
    loc = problem["loc"]
    # Of a number or a word (`int | Literal["auto"]`) pydantic tells each by itself, as `literal['auto']` in its place.
    words = [o["msg"] for o in others if o["loc"][:-1] == loc[:-1] and str(o["loc"][-1]).startswith("literal[")]
    key, got = ".".join([where, *map(str, loc[:-1] if words else loc)]), f", got {problem['input']!r}"
    if problem["type"] == "unexpected_keyword_argument":
        return f"{key}: no such key{got}; allowed are {[f.name for f in fields(kind)]}"  # type: ignore[arg-type]
    if problem["type"] == "value_error":  # raised by a class of settings itself
        return f"{key}: {problem['ctx']['error']}"
    said = ", or ".join([problem["msg"], *words])
    said = said.replace("Input should be", "must be", 1).replace("Input should be ", "")
    return f"{key}: {said}" + ("" if problem["type"] == "missing" else got)


def inner_settings(hint: Any) -> type | None:
    """The dataclass that is a field's type, alone or beside None; None for a plain type."""
    return next((t for t in (hint, *get_args(hint)) if is_dataclass(t) and isinstance(t, type)), None)
