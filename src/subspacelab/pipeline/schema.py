"""params.schema.json: what params.yaml may hold, made of the settings' classes, for editors that complete and check.

`python -m subspacelab.pipeline.schema` writes it to the file that the first line of params.yaml names.
"""

import importlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from subspacelab.core.files import write_json
from subspacelab.core.settings import schema_of
from subspacelab.pipeline.params import Common

SCHEMA = Path("params.schema.json")
CONFIGS = ("synthetic", "rotation", "lowrank", "nullspace", "norms")
"""Packages whose module `config` says, in `STAGES`, what can be set for which stage."""


def stage_settings() -> dict[str, type]:
    """Stage to the class of its settings, of the studies that are there."""
    found: dict[str, type] = {}
    for package in CONFIGS:
        if find_spec(f"subspacelab.{package}"):
            found |= importlib.import_module(f"subspacelab.{package}.config").STAGES
    return found


def params_schema() -> dict[str, Any]:
    """JSON schema (2020-12) of params.yaml; a section needs no key: a study may hold it."""
    schema = schema_of(Common)
    definitions: dict[str, Any] = {}
    for stage, kind in stage_settings().items():
        section = schema_of(kind)
        definitions |= section.pop("$defs", {})
        section.pop("required", None)
        schema["properties"][stage] = section
    return schema | {"title": "params.yaml", "$defs": definitions}


if __name__ == "__main__":
    write_json(SCHEMA, params_schema())
