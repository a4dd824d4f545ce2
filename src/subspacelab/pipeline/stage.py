"""The surroundings of a DVC stage: parameters in, one tracked run around, inputs guarded, a killed run continued."""

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
    """What dvc.yaml says of one stage."""

    deps: list[Path]
    """Files and folders that it reads, sources included."""
    outs: list[Path]
    """Files and folders that it writes: outs, metrics and plots."""

    @property
    def sources(self) -> list[Path]:
        """The dependencies that are code."""
        return [p for p in self.deps if p.parts[0] == "src" or p.suffix == ".py"]


class _Stage(BaseModel):
    """What is read of a stage in dvc.yaml; an entry that is a mapping has the path as its key."""

    matrix: dict[str, Any] = {}
    deps: list[str | dict[str, Any]] = []
    outs: list[str | dict[str, Any]] = []
    metrics: list[str | dict[str, Any]] = []
    plots: list[str | dict[str, Any]] = []


def read_declaration(name: str, item: str | None = None, path: Path = DVC_FILE) -> Declaration:
    """The declaration of stage `name` in dvc.yaml, for one `item` of its matrix.

    `item` is what DVC writes after the `@`: the value of each axis, joined by `-`; only the first may hold one itself.
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

    return Declaration(paths(stage.deps), paths([*stage.outs, *stage.metrics, *stage.plots]))


@dataclass(frozen=True)
class Stage(Generic[T]):
    """What a stage script works with."""

    params: T
    """The stage's own parameters."""
    study: Study
    """What is being studied."""
    rank: int
    """Rank of the low-rank approximations."""
    seed: int
    """Seed of every generator."""
    tracker: Tracker
    """Where the run is recorded; a null tracker when tracking is off."""
    work_dir: Path
    """A folder outside the outs that outlives a kill: the next run on the same inputs finds what this one left."""


@contextmanager
def open_stage(
    name: str,
    config: type[T],
    *,
    experiment: str,
    item: str | None = None,
    tracked: Callable[[T], bool] = lambda _: True,
    study: str | None = None,
    pipeline: Path = DVC_FILE,
) -> Iterator[Stage[T]]:
    """Reads the parameters, sets seed and threads, opens the run, and refuses to finish if an input changed.

    `tracked(params)` says whether there is anything to record: a stage that hands its input on has no run. A stage of
    another `pipeline` than the default one names the `study` that it belongs to.

    DVC reads parameters and sources after the command, so a change in mid-run would file this result under
    inputs that it does not come from.
    """
    from subspacelab.core.devices import make_repeatable

    params = read_params(study=study)
    declared = read_declaration(name, item, pipeline)
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
                pipeline_params=common | params.sections,
                enabled=tracked(section),
            )
        )
        work_dir = stack.enter_context(continued_folder(full_name, fingerprint(full_name, logged, declared.deps)))
        yield Stage(section, params.study, params.common.rank, params.common.seed, tracker, work_dir)
        guard.check()


def fingerprint(stage: str, params: dict[str, Any], deps: list[Path]) -> str:
    """Digest of all that determines a stage's result: its name, its parameters and the content of what it reads."""
    digest = hashlib.sha256(json.dumps([stage, params], sort_keys=True, default=str).encode())
    for dep in deps:
        for file in dependency_files(dep):
            digest.update(f"{file} {sha256_file(file)}\n".encode())
    return digest.hexdigest()[:16]


@contextmanager
def alone_in_workspace(stage: str) -> Iterator[None]:
    """Waits until no earlier run of the stage writes to the outs of this workspace.

    When DVC alone is killed its stage lives on, and would put its outs in the place of a later run's while DVC
    hashes those.
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
    """A folder in the main repository's .cache for work in progress; it is removed on success, kept on failure.

    Two experiments may run the same stage on the same inputs at once: the second then works in a folder of its own.
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
    """Removes what interrupted stages have left in .cache; returns the stages that are at work, whose folders stay."""
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
    """Where the work `name` may be done: first the folders that a killed run has left, then new ones."""
    yield from sorted(path for path in root.glob(f"{name}*") if path.is_dir())
    yield root / name
    yield from (root / f"{name}-{number}" for number in count(2))


def _locked(lock: IO[str]) -> bool:
    """Takes the lock if it is free; it goes with the process, however that ends."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
