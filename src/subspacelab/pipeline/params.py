"""params.yaml and studies: read once, fully checked, passed on as frozen dataclasses.

The settings class of a stage is in the package that uses it, so that a change to one stage's settings re-runs only that
stage.

`params.yaml` holds what a user varies; `pipelines/studies/<study>.yaml` says what is studied and at what size. The
parameters of a stage are the union of the sections with its name in both files; a key is in one of the two files.

`python -m subspacelab.pipeline.params` writes the JSON schemas with which editors complete and check these files.
"""

import importlib
import json
import os
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent

from subspacelab.core.files import write_json
from subspacelab.core.settings import Count, Seed, T, schema_of, settings, validate

PARAMS = Path("params.yaml")
STUDIES = Path("pipelines/studies")
BASE = "demo"
"""The study that others may extend; dvc.yaml tracks its sections in every study."""
MAX_DEPTH = 50
"""Largest nesting depth of a YAML file; ours have depth 5."""
TOP_LEVEL = ("study", "rank", "seed", "threads")


@settings
class Common:
    """The top level of params.yaml."""

    study: str
    """Name of the study: a file in pipelines/studies."""
    rank: Count
    """Rank of the low-rank approximations of lowrank and nullspace."""
    seed: Seed
    """Seed of every generator."""
    threads: Annotated[int, Field(ge=1, le=512)]
    """Threads of the linear algebra. Two runs are bit-equal only with the same number. Some systems silently end a
    process that asks for more than 512."""


@dataclass(frozen=True)
class NoSettings:
    """For a stage without settings of its own."""


@dataclass(frozen=True)
class Study:
    """What is studied."""

    name: str
    """Name of the study and of its file."""
    checkpoints: dict[str, str] = field(default_factory=dict)
    """Role (base, rl_stage1, ...) -> reference: a folder, `org/name[@revision]`, or `train` (trained by the
    pipeline)."""
    sections: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Stage -> the parameters that this study sets, or inherits from the study that it extends."""
    files: tuple[Path, ...] = ()
    """The files that were read."""

    def reference(self, role: str) -> str:
        """The reference of the checkpoint in `role`; ValueError, listing all roles, if there is none."""
        if role not in self.checkpoints:
            raise ValueError(f"study {self.name!r} has no checkpoint {role!r}; it has {sorted(self.checkpoints)}")
        return self.checkpoints[role]


@dataclass(frozen=True)
class Params:
    """All input of a pipeline run: both files, with the top level checked and the sections still raw."""

    common: Common
    """The top level of params.yaml."""
    study: Study
    """The study that `study` names."""
    sections: dict[str, dict[str, Any]]
    """Stage -> its section of params.yaml."""

    def section(self, stage: str, config: type[T]) -> T:
        """The parameters of one stage as `config`; ValueError for unknown, missing and wrongly typed keys."""
        own, studied = self.sections.get(stage) or {}, self.study.sections.get(stage) or {}
        both = sorted(own.keys() & studied.keys())
        if both:
            raise ValueError(f"{stage}.{both[0]} is set in params.yaml and in study {self.study.name!r}; keep one")
        return validate(config, own | studied, where=stage)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML 1.2 mapping (in which 1e-3 is a number) as plain JSON values; a one-line ValueError for anything else."""
    if not path.exists():
        raise ValueError(f"{path} is missing; run from the project's root")
    if not path.is_file():
        raise ValueError(f"{path} is no file; put one in its place")
    try:
        _require_plain(path)
        values = json.loads(json.dumps(YAML(typ="safe", pure=True).load(path), default=str))
    except MarkedYAMLError as e:
        line = e.problem_mark.line + 1 if e.problem_mark else "?"
        raise ValueError(f"{path}: not valid YAML at line {line}: {e.problem}") from e
    except (YAMLError, RecursionError) as e:  # bytes that are no text, or nested beyond all reading
        raise ValueError(f"{path}: not valid YAML ({' '.join(str(e).split())}); restore it") from e
    except (ValueError, TypeError) as e:  # numbers of thousands of digits, keys that are lists
        raise ValueError(f"{path}: cannot be read ({e}); correct it") from e
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a mapping of sections, got {type(values).__name__}")
    return values


def _require_plain(path: Path) -> None:
    """ValueError for input that would expand to gigabytes or take hours: aliases of aliases, endless brackets."""
    depth = 0
    with path.open("rb") as file:
        for event in YAML(typ="safe", pure=True).parse(file):
            depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
            if isinstance(event, AliasEvent):
                raise ValueError(f"alias *{event.anchor} in line {event.start_mark.line + 1}; write its value out")
            if depth > MAX_DEPTH:
                raise ValueError(f"nested more than {MAX_DEPTH} deep in line {event.start_mark.line + 1}")


def read_study(name: str, folder: Path = STUDIES) -> Study:
    """The study of that name; ValueError, listing all studies, if there is none.

    With `extends: demo`, an empty section is copied from demo; a section with values replaces demo's as a whole.
    """
    path = folder / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(f"study: no such study {name!r}; there are {sorted(p.stem for p in folder.glob('*.yaml'))}")
    values, files = read_yaml(path), [path]
    if "extends" in values:
        if (base := values.pop("extends")) != BASE or name == BASE:
            raise ValueError(f"{path}: extends: {BASE} is all that another study may extend, got {base!r}")
        files.append(folder / f"{BASE}.yaml")
        values = _extended(values, read_yaml(files[-1]), path)
    checkpoints = validate(dict[str, str], values.pop("checkpoints", {}), where=f"{path}: checkpoints")
    return Study(name, checkpoints, validate(dict[str, dict[str, Any]], values, where=str(path)), tuple(files))


def _extended(values: dict[str, Any], base: dict[str, Any], path: Path) -> dict[str, Any]:
    """The sections of a study, empty ones taken from its base; ValueError if one of the base's sections is not listed.

    DVC refuses a stage whose section is missing in a tracked file.
    """
    missing = [section for section in base if section not in values]
    if missing:
        raise ValueError(f"{path}: no section {missing[0]!r}; write '{missing[0]}:' without a value for that of {BASE}")
    return {section: base.get(section) if value is None else value for section, value in values.items()}


def read_params(path: Path = PARAMS, studies: Path = STUDIES) -> Params:
    """params.yaml and its study. The top level is checked here, each section when its stage reads it."""
    values = read_yaml(path)
    common = validate(Common, {k: values.pop(k) for k in TOP_LEVEL if k in values}, where=path.name)
    sections = validate(dict[str, dict[str, Any]], values, where=path.name)
    return Params(common, read_study(common.study, studies), sections)


SCHEMA, STUDY_SCHEMA = Path("params.schema.json"), STUDIES / "study.schema.json"
CONFIGS = ("synthetic", "rotation", "lowrank", "nullspace", "norms", "report")
"""Packages whose module `config` lists in `STAGES` the settings of their stages."""


def stage_settings() -> dict[str, type]:
    """Stage -> class of its settings, for all studies that are installed."""
    found: dict[str, type] = {}
    for package in CONFIGS:
        if find_spec(f"subspacelab.{package}"):
            found |= importlib.import_module(f"subspacelab.{package}.config").STAGES
    return found


def params_schema() -> dict[str, Any]:
    """JSON schema (2020-12) of params.yaml; no key of a section is required, since a study may set it."""
    schema = schema_of(Common)
    definitions: dict[str, Any] = {}
    for stage, kind in stage_settings().items():
        section = schema_of(kind)
        definitions |= section.pop("$defs", {})
        section.pop("required", None)
        schema["properties"][stage] = section
    return schema | {"title": "params.yaml", "$defs": definitions}


def study_schema() -> dict[str, Any]:
    """JSON schema (2020-12) of a study: the sections of params.yaml, which may be empty in a study that extends one."""
    place = Path(os.path.relpath(SCHEMA, STUDIES)).as_posix()
    sections = {
        stage: {"anyOf": [{"$ref": f"{place}#/properties/{stage}"}, {"type": "null"}]} for stage in stage_settings()
    }
    own = {
        "extends": {"const": BASE, "description": f"The study from which empty sections are copied: {BASE}."},
        "checkpoints": {
            "additionalProperties": {"type": "string"},
            "description": "Role -> reference: a folder, org/name[@revision], or train (trained by the pipeline).",
            "type": "object",
        },
    }
    return {"title": "study", "type": "object", "additionalProperties": False, "properties": own | sections}


if __name__ == "__main__":
    write_json(SCHEMA, params_schema())
    write_json(STUDY_SCHEMA, study_schema())
