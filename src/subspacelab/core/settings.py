"""Settings checked to the last key, and handed over as frozen dataclasses."""

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")


def require_at_least(least: int, settings: object, *names: str) -> None:
    """ValueError for the first of the named settings that is below `least`; what is null may stay so."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def require_seed(seed: int) -> None:
    """ValueError for a seed that one of the generators (torch's, NumPy's, transformers') does not take."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be 0 to {2**32 - 1}, got {seed}")


def require_positive(settings: object, *names: str) -> None:
    """ValueError for the first of the named settings that is not above 0 and finite."""
    for name in names:
        if not 0 < getattr(settings, name) < math.inf:
            raise ValueError(f"{name} must be above 0 and finite, got {getattr(settings, name)}")


def validate(config: type[T], values: dict[str, Any], where: str) -> T:
    """`values` as an instance of `config`, or a one-line ValueError that names the key and the value got."""
    if is_dataclass(config):
        _require_known(config, values, where)
    try:
        # As JSON, for in strict mode only JSON may stand for a dataclass or a tuple.
        return TypeAdapter(config).validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as e:
        problem = e.errors()[0]
        if problem["type"] == "json_invalid":  # half a surrogate pair: Python's way to keep bytes that are no text
            bad = next(
                f"{name}={value!a}" for name, value in values.items() if "\\ud" in json.dumps(value, default=str)
            )
            raise ValueError(f"{where}: {bad} is no text in this locale; rename it, or set PYTHONUTF8=1") from e
        key = ".".join([where, *map(str, problem["loc"])])
        got = "" if problem["type"] in ("missing", "value_error") else f", got {problem['input']!r}"
        raise ValueError(f"{key}: {problem['msg']}{got}") from e


def settings_from_flags(config: type[T], flags: Mapping[str, Any], where: str) -> T:
    """A command's settings: those of its flags that have the name of a field of `config`, validated as a section is."""
    names = [f.name for f in fields(config)]  # type: ignore[arg-type]
    return validate(config, {name: flags[name] for name in names if name in flags}, where)


def _require_known(config: type[Any], values: dict[str, Any], where: str) -> None:
    """ValueError for a key that `config`, or a dataclass within it, does not have; pydantic would drop it."""
    allowed = [f.name for f in fields(config)]
    unknown = sorted(values.keys() - set(allowed))
    if unknown:
        raise ValueError(f"{where}.{unknown[0]}: no such key, got {values[unknown[0]]!r}; allowed are {allowed}")
    for name, hint in get_type_hints(config).items():
        inner = next((t for t in (hint, *get_args(hint)) if is_dataclass(t)), None)
        if isinstance(inner, type) and isinstance(values.get(name), dict):
            _require_known(inner, values[name], f"{where}.{name}")
