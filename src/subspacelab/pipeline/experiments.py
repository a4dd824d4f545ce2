"""DVC's experiments: names, commits, parameters, metrics, and the MD5 of each stage's outs."""

import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from subspacelab.core.files import read_json
from subspacelab.pipeline.dvc_process import dvc_json, dvc_silent

REPORTS = Path("reports")
HEADLINES = "metrics.json"
"""File of headline metrics in each folder of reports; DVC compares it."""
Outs = dict[str, dict[str, str]]
"""Stage -> path -> MD5, as in a dvc.lock."""


@dataclass(frozen=True)
class Experiment:
    """An experiment of DVC."""

    name: str
    """Its name, for `dvc exp apply`."""
    rev: str
    """Its commit."""
    baseline: str
    """The commit that it started from."""
    params: dict[str, str]
    """Dotted key -> value; a key of another file than params.yaml begins with `<file>:`."""
    metrics: dict[str, float]
    """Name -> number, with the column names of `dvc exp show`."""


def read_experiments(all_commits: bool = False) -> list[Experiment]:
    """The finished experiments of the last commit, or of all commits."""
    scope = ("--all-commits",) if all_commits else ()
    listed = dvc_json("exp", "show", *scope)
    return [
        experiment
        for commit in listed
        for entry in commit["experiments"] or []
        if (experiment := _read(entry, commit["rev"])) is not None
    ]


def _read(entry: Mapping[str, Any], baseline: str) -> Experiment | None:
    """The experiment; None if it is queued, running or failed, since it then has no commit of its own."""
    state = entry["revs"][0]
    data = state["data"]
    if data is None or not entry["name"] or entry["executor"] is not None:
        return None
    metrics = shortest_names(read_metrics(data["metrics"]))
    return Experiment(entry["name"], state["rev"], baseline, _params(data["params"]), metrics)


def _params(files: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for file, content in files.items():
        prefix = "" if file == "params.yaml" else f"{file}:"
        found |= {f"{prefix}{key}": str(value) for key, value in _leaves(content.get("data") or {})}
    return found


def read_metrics(files: Mapping[str, Any]) -> dict[str, float]:
    """Every number in DVC's metrics, by `<file>:<dotted key>`."""
    return {
        f"{file}:{key}": float(value)
        for file, content in files.items()
        for key, value in _leaves(content.get("data") or {})
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def shortest_names(metrics: Mapping[str, float]) -> dict[str, float]:
    """The same by `<dotted key>` alone, as in MLflow; with `<file>:` if two files share a key."""
    keys = {name: name.partition(":")[2] for name in metrics}
    shared = Counter(keys.values())
    return {keys[name] if shared[keys[name]] == 1 else name: value for name, value in metrics.items()}


def read_details(rev: str, folder: Path = REPORTS) -> dict[str, float]:
    """Every number in an experiment's detailed reports, by `<file>:<dotted key>`; headline metrics derive from these.

    ValueError, in one line, if DVC cannot provide the files of that commit.
    """
    with fetched(rev, folder) as place:
        files = {str(folder / file.relative_to(place)): file for file in sorted(place.rglob("*.json"))}
        return numbers_of({name: file for name, file in files.items() if file.name != HEADLINES})


@contextmanager
def fetched(rev: str, path: Path) -> Iterator[Path]:
    """A copy of a file or folder from a commit, within the block; ValueError as `dvc_silent`."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name) / path.name
        dvc_silent("get", ".", str(path), "--rev", rev, "--out", str(place))
        yield place


def numbers_of(files: Mapping[str, Path]) -> dict[str, float]:
    """Every number in JSON files, by `<name>:<dotted key>`; a file that holds a list gives none."""
    contents = {name: read_json(file) for name, file in files.items()}
    return read_metrics({name: {"data": data} for name, data in contents.items() if isinstance(data, dict)})


def read_outs(rev: str) -> Outs:
    """The outs of every stage in the dvc.lock of a commit; empty if it has none."""
    line = ["git", "show", f"{rev}:dvc.lock"]
    done = subprocess.run(line, capture_output=True, encoding="utf-8", errors="replace")
    stages = YAML(typ="safe").load(done.stdout)["stages"] if done.returncode == 0 else {}
    return {name: {out["path"]: out["md5"] for out in stage.get("outs", [])} for name, stage in stages.items()}
