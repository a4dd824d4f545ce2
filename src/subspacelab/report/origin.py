"""Origin of the numbers: commands, parameters, files with their MD5, versions, and the commit if it is known."""

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd

from subspacelab.pipeline.params import PARAMS, STUDIES, Params, read_params
from subspacelab.report.page import Table
from subspacelab.report.results import Results

PACKAGES = ("subspacelab", "torch", "transformers", "peft", "safetensors", "numpy", "pandas", "dvc", "mlflow", "plotly")


def read_parameters(root: Path) -> Params | None:
    """params.yaml and its study; None if there is no params.yaml."""
    return read_params(root / PARAMS, root / STUDIES) if (root / PARAMS).is_file() else None


def section_origin(name: str, stages: Sequence[str], results: Results, params: Params | None) -> list[Table]:
    """The commands of a study, its parameters and the files of its section."""
    commands = pd.DataFrame([{"stage": stage, "command": f"dvc repro {stage}"} for stage in stages])
    found = [
        Table(
            "Commands",
            commands,
            note="Each runs its stage and whatever it depends on, if anything changed.",
            folded=True,
        )
    ]
    if params is not None:
        values = [(stage, params.sections.get(stage), params.study.sections.get(stage)) for stage in stages]
        rows = [
            {"parameter": f"{stage}.{key}", "value": value, "file": file}
            for stage, own, studied in values
            for file, section in ((PARAMS.name, own), (f"{params.study.name}.yaml", studied))
            for key, value in _flat(section or {})
        ]
        if rows:
            found.append(Table("Parameters", pd.DataFrame(rows), folded=True))
    files = [{"file": path, "md5": md5} for path, md5 in sorted(results.md5.items())]
    if files:
        found.append(Table("Files", pd.DataFrame(files), note=f"What this section of {name} was made of.", folded=True))
    return found


def page_origin(params: Params | None, commit: Mapping[str, str]) -> list[Table]:
    """Versions, the top level of params.yaml, the checkpoints and, for the command, the commit."""
    rows = [{"what": "commit", "value": commit["git.commit"] + _dirty(commit)}] if "git.commit" in commit else []
    if params is not None:
        rows += [{"what": key, "value": str(value)} for key, value in vars(params.common).items()]
        rows += [{"what": f"checkpoint {role}", "value": given} for role, given in params.study.checkpoints.items()]
    rows += [{"what": name, "value": found} for name in PACKAGES if (found := _version(name))]
    return [Table("Versions and parameters of all studies", pd.DataFrame(rows))]


def _dirty(commit: Mapping[str, str]) -> str:
    return " and changes that are not committed" if commit.get("git.dirty") == "true" else ""


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Dotted keys with values as text."""
    found: list[tuple[str, str]] = []
    for key, value in values.items():
        nested = isinstance(value, dict) and value
        found += (
            _flat(value, f"{prefix}{key}.") if nested else [(f"{prefix}{key}", "null" if value is None else str(value))]
        )
    return found
