"""params.yaml and studies: read once, checked to the last key, handed over as frozen dataclasses.

Each stage's dataclass lies with what it configures, so that a change to one stage's parameters re-runs that stage.

`params.yaml` holds what a person varies; `pipelines/studies/<study>.yaml` what is being studied and at what size.
A stage's parameters are the union of both files' sections of that name: a key lives in one of the two files.

`python -m subspacelab.pipeline.params` writes params.schema.json, by which editors complete and check params.yaml.
"""

import importlib
import json
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
"""The study that others may extend: the one whose sections dvc.yaml tracks in every study."""
MAX_DEPTH = 50
"""Of a YAML file; ours are 5 deep."""
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
    """Threads of the linear algebra: part of what makes two runs equal to the last bit. Some systems end a process,
    without a word, that asks for more than 512."""


@dataclass(frozen=True)
class NoSettings:
    """Of a stage that has none of its own."""


@dataclass(frozen=True)
class Study:
    """What is being studied."""

    name: str
    """The study's name, also that of its file."""
    checkpoints: dict[str, str] = field(default_factory=dict)
    """Role (base, rl_stage1, ...) to reference: a folder, `org/name[@revision]`, or `train`: trained here."""
    sections: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Stage to the parameters that this study sets, or takes from the study that it extends."""
    files: tuple[Path, ...] = ()
    """What was read."""

    def reference(self, role: str) -> str:
        """The reference of the checkpoint that plays `role`; a ValueError names the roles there are."""
        if role not in self.checkpoints:
            raise ValueError(f"study {self.name!r} has no checkpoint {role!r}; it has {sorted(self.checkpoints)}")
        return self.checkpoints[role]


@dataclass(frozen=True)
class Params:
    """Everything a pipeline run reads: both files, checked at the top, sections still raw."""

    common: Common
    """The top level."""
    study: Study
    """The study that `study` names."""
    sections: dict[str, dict[str, Any]]
    """Stage to its section of params.yaml."""

    def section(self, stage: str, config: type[T]) -> T:
        """The parameters of one stage as `config`; unknown, missing and wrongly typed keys are a ValueError."""
        own, studied = self.sections.get(stage) or {}, self.study.sections.get(stage) or {}
        both = sorted(own.keys() & studied.keys())
        if both:
            raise ValueError(f"{stage}.{both[0]} is set in params.yaml and in study {self.study.name!r}; keep one")
        return validate(config, own | studied, where=stage)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML 1.2 mapping (where 1e-3 is a number) as plain JSON values; anything else is a one-line ValueError."""
    if not path.exists():
        raise ValueError(f"{path} is missing; run from the project's root")
    if not path.is_file():
        raise ValueError(f"{path} is no file; put one in its place")
    try:
        _require_plain(path)
        values = json.loads(json.dumps(YAML(typ="safe").load(path), default=str))
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
    """ValueError for what takes gigabytes or hours to unfold: an alias of aliases, brackets without end."""
    depth = 0
    with path.open("rb") as file:
        for event in YAML(typ="safe").parse(file):
            depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
            if isinstance(event, AliasEvent):
                raise ValueError(f"alias *{event.anchor} in line {event.start_mark.line + 1}; write its value out")
            if depth > MAX_DEPTH:
                raise ValueError(f"nested more than {MAX_DEPTH} deep in line {event.start_mark.line + 1}")


def read_study(name: str, folder: Path = STUDIES) -> Study:
    """The study of that name; an unknown one is a ValueError that lists those there are.

    With `extends: demo` a section without a value is demo's; one with a value is the study's own as a whole.
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
    """The sections of a study, those without a value from its base; ValueError for one that is not named.

    DVC refuses a stage whose section a tracked file does not name.
    """
    missing = [section for section in base if section not in values]
    if missing:
        raise ValueError(f"{path}: no section {missing[0]!r}; write '{missing[0]}:' without a value for that of {BASE}")
    return {section: base.get(section) if value is None else value for section, value in values.items()}


def read_params(path: Path = PARAMS, studies: Path = STUDIES, study: str | None = None) -> Params:
    """params.yaml and `study`, by default the one it names; the top level is checked here, a section by its stage."""
    values = read_yaml(path)
    common = validate(Common, {k: values.pop(k) for k in TOP_LEVEL if k in values}, where=path.name)
    sections = validate(dict[str, dict[str, Any]], values, where=path.name)
    return Params(common, read_study(study or common.study, studies), sections)


SCHEMA = Path("params.schema.json")
CONFIGS = ("synthetic", "rotation", "lowrank", "nullspace", "norms", "report")
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
