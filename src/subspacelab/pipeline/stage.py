"""What surrounds a DVC stage's function: parameters, one tracked run, guarded inputs, continuation after a kill."""

import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import IO, Any, Generic, TypeVar

from pydantic import BaseModel

from subspacelab.core.files import remove_folder, remove_partials, remove_partials_of, sha256_file
from subspacelab.core.settings import validate
from subspacelab.pipeline.params import PARAMS, Study, read_params, read_yaml
from subspacelab.tracking import InputGuard, Tracker, main_root, open_stage_run
from subspacelab.tracking.dvc_files import dependency_files

DVC_FILE = Path("dvc.yaml")
WORK = Path(".cache/stages")

T = TypeVar("T")


@dataclass(frozen=True)
class Declaration:
    """The declaration of one stage in dvc.yaml."""

    deps: list[Path]
    """Files and folders that the stage reads, source code included."""
    outs: list[Path]
    """Files and folders that the stage writes: outs, metrics and plots."""

    desc: str = ""
    """What the stage does, in a sentence."""

    @property
    def inputs(self) -> list[Path]:
        """The dependencies that other stages make."""
        return [p for p in self.deps if p not in self.sources and p != PARAMS and p.parts[0] != "pipelines"]

    @property
    def sources(self) -> list[Path]:
        """The dependencies that are source code."""
        return [p for p in self.deps if p.parts[0] == "src" or p.suffix == ".py"]


class _Stage(BaseModel):
    """The keys of a stage in dvc.yaml that this code reads; an entry that is a mapping has the path as its key."""

    matrix: dict[str, Any] = {}
    deps: list[str | dict[str, Any]] = []
    outs: list[str | dict[str, Any]] = []
    metrics: list[str | dict[str, Any]] = []
    plots: list[str | dict[str, Any]] = []
    desc: str = ""


def read_declaration(name: str, item: str | None = None, path: Path = DVC_FILE) -> Declaration:
    """The declaration of stage `name` in dvc.yaml, for one `item` of its matrix.

    `item` is the text after the `@` in DVC's stage name: the value of each axis, joined by `-`; only the first value
    may contain a `-` itself.
    """
    stages = validate(dict[str, Any], read_yaml(path).get("stages") or {}, where=f"{path}: stages")
    if name not in stages:
        raise ValueError(f"{path} has no stage {name!r}; it has {sorted(stages)}")
    stage = validate(_Stage, stages[name], where=f"{path}: {name}")
    values = dict(zip(stage.matrix, (item or "").rsplit("-", len(stage.matrix) - 1), strict=False))

    def paths(entries: list[str | dict[str, Any]]) -> list[Path]:
        named = [next(iter(entry), "") if isinstance(entry, dict) else entry for entry in entries]
        for axis, value in values.items():
            named = [entry.replace(f"${{item.{axis}}}", value) for entry in named]
        return [Path(entry) for entry in named]

    return Declaration(paths(stage.deps), paths([*stage.outs, *stage.metrics, *stage.plots]), stage.desc)


@dataclass(frozen=True)
class Stage(Generic[T]):
    """Everything that a stage script needs."""

    params: T
    """The stage's own parameters."""
    study: Study
    """What is studied."""
    rank: int
    """Rank of the low-rank approximations."""
    seed: int
    """Seed of every generator."""
    tracker: Tracker
    """Tracker of the run; a null tracker if tracking is off."""
    work_dir: Path
    """A folder outside the outs that survives a kill: the next run with the same inputs continues from it."""


@contextmanager
def open_stage(
    name: str,
    config: type[T],
    *,
    experiment: str,
    item: str | None = None,
    tracked: Callable[[T], bool] = lambda _: True,
) -> Iterator[Stage[T]]:
    """Reads the parameters, sets seed and threads, opens the run, and fails at the end if an input changed.

    `tracked(params)` says whether there is anything to record: a stage that only passes its input on has no run.

    DVC reads parameters and sources after the command, so after a change during the run it would store this result
    under inputs that did not produce it.
    """
    from subspacelab.core.devices import make_repeatable

    params = read_params()
    declared = read_declaration(name, item)
    section = params.section(name, config)
    guard = InputGuard([PARAMS, *params.study.files, *declared.sources])
    make_repeatable(seed=params.common.seed, threads=params.common.threads)
    common = asdict(params.common)
    logged = common | {name: asdict(section)}  # type: ignore[call-overload]
    full_name = f"{name}@{item}" if item else name
    with ExitStack() as stack:
        stack.enter_context(alone_in_workspace(full_name))
        for out in declared.outs:
            remove_partials_of(out)
        tracker = stack.enter_context(
            open_stage_run(
                full_name,
                experiment,
                params=logged,
                outs=declared.outs,
                study=params.study.name,
                inputs=declared.inputs,
                description=declared.desc,
                pipeline_params=common | params.sections,
                enabled=tracked(section),
            )
        )
        work_dir = stack.enter_context(continued_folder(full_name, fingerprint(full_name, logged, declared.deps)))
        yield Stage(section, params.study, params.common.rank, params.common.seed, tracker, work_dir)
        guard.check()


def fingerprint(stage: str, params: dict[str, Any], deps: list[Path]) -> str:
    """Digest of everything that determines a stage's result: its name, its parameters and the content of its inputs."""
    digest = hashlib.sha256(json.dumps([stage, params], sort_keys=True, default=str).encode())
    for dep in deps:
        for file in dependency_files(dep):
            digest.update(f"{file} {sha256_file(file)}\n".encode())
    return digest.hexdigest()[:16]


@contextmanager
def alone_in_workspace(stage: str) -> Iterator[None]:
    """Waits until no earlier run of the stage writes to the outs of this workspace.

    If only DVC is killed, its stage continues and would replace the outs of a later run while DVC hashes them.
    """
    root = WORK / stage  # of the workspace: each temporary copy of an experiment has outs of its own
    root.mkdir(parents=True, exist_ok=True)
    with (root / "workspace.lock").open("a+", encoding="utf-8") as lock:
        if not _locked(lock):
            lock.seek(0)
            owner = f"{stage}: an earlier run is still at work in this folder (process {lock.read() or 'unknown'})"
            print(f"{owner}; waiting for its end", file=sys.stderr, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        lock.truncate(0)
        print(os.getpid(), end="", file=lock, flush=True)
        yield


@contextmanager
def continued_folder(stage: str, name: str) -> Iterator[Path]:
    """A folder for unfinished work in .cache of the main repository; removed on success, kept on failure.

    Two experiments may run the same stage on the same inputs at once; the second one then uses another folder.
    """
    root = main_root() / WORK / stage
    root.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        for folder in _work_folders(root, name):
            lock = stack.enter_context((root / f"{folder.name}.lock").open("w", encoding="utf-8"))
            if _locked(lock):
                break
        remove_partials_of(folder)
        folder.mkdir(exist_ok=True)
        remove_partials(folder)
        yield folder
        remove_folder(folder)


def remove_left_work() -> list[str]:
    """Removes unfinished work from .cache; returns the stages that are running, whose folders stay."""
    busy = []
    for root in sorted(path for path in (main_root() / WORK).glob("*") if path.is_dir()):
        with ExitStack() as stack:
            locks = [stack.enter_context(path.open("a", encoding="utf-8")) for path in root.glob("*.lock")]
            if not locks:  # no stage's
                continue
            if all(map(_locked, locks)):
                remove_folder(root)
            else:
                busy.append(root.name)
    return busy


def _work_folders(root: Path, name: str) -> Iterator[Path]:
    """Candidate folders for the work `name`: first those left by killed runs, then new ones."""
    yield from sorted(path for path in root.glob(f"{name}*") if path.is_dir())
    yield root / name
    yield from (root / f"{name}-{number}" for number in count(2))


def _locked(lock: IO[str]) -> bool:
    """Takes the lock if it is free; it is released when the process ends, in whatever way."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
