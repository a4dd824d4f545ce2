"""Where a command may write: not over its inputs, not over other people's files, not while another process writes."""

import fcntl
import json
import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from subspacelab.core.files import (
    is_partial,
    partial_folder,
    read_json,
    real_path,
    remove_partials_of,
    sha256_file,
    through_links,
    write_beside,
    write_json,
)
from subspacelab.core.references import canonical

MANIFEST = ".subspacelab.json"
"""File in a folder of results (tables, pictures): which command wrote which file from what, with their SHA-256."""


def require_apart(place: Path, inputs: Iterable[Path]) -> None:
    """ValueError if the output `place` is one of the `inputs`, or lies inside one of their folders."""
    there = real_path(place)
    for given in inputs:
        source = real_path(given)
        if there == source or source in there.parents:
            raise ValueError(f"{place}: is, or lies within, the input {given}; give another place for the output")


def require_own_entries(folder: Path, own: Collection[str], what: str) -> None:
    """ValueError, naming the entry, if `folder` holds a name that is not in `own`; `what` describes the result."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: a file, not {what}, and would be replaced; give another place")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    others = sorted(name for name in names - set(own) if not is_partial(name))
    if others:
        raise ValueError(f"{folder}: holds {others[0]!r}, no part of {what}, and would be replaced; give a new folder")
    require_no_links(folder)


def require_no_links(folder: Path) -> None:
    """ValueError, naming it, for a symbolic link in `folder`: output would go elsewhere, or replace the link."""
    link = next((path for path in sorted(folder.iterdir()) if path.is_symlink()), None) if folder.is_dir() else None
    if link is not None:
        raise ValueError(f"{link}: a symbolic link among what is written here; move it away, or give another place")


def require_same_job(place: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """ValueError if the result at `place` comes from another source or other settings; the message names both.

    `pipeline:NAME` and its older name `demo:NAME` count as one source.
    """
    for key in sorted({*found, *wanted}):
        if canonical(found.get(key)) != canonical(wanted.get(key)):
            raise ValueError(
                f"{place}: holds a result of {key}={found.get(key)!r}, this one is of {key}={wanted.get(key)!r}; "
                "give another place, or remove that result first"
            )


@contextmanager
def sole_writer(place: Path) -> Iterator[None]:
    """Locks `place` against other processes within the block; ValueError at once if another process holds the lock.

    The lock is a file beside `place`, so that it survives the replacement of `place`; it also works on a volume shared
    by several machines. It is released when the process ends, in whatever way. Folders created for the lock are removed
    again if they stay empty.
    """
    place = real_path(place) if place.name in ("", "..") else through_links(place)  # errors name it as it was typed
    path = lock_of(place)
    new = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        _require_lock(path)
        with path.open("a+", encoding="utf-8") as lock:
            _lock_or_refuse(lock, place)
            if not _is_still(path, lock):  # its owner removed it between our opening and our locking it
                continue
            lock.truncate(0)
            print(os.getpid(), end="", file=lock, flush=True)
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
                with suppress(OSError):  # not empty
                    for folder in new:
                        folder.rmdir()
            return


def lock_of(place: Path) -> Path:
    """The lock file of `sole_writer(place)`."""
    return place.with_name(f".{place.name}.lock")


def _require_lock(path: Path) -> None:
    """ValueError if the file is not a lock of `sole_writer`: a lock holds a process id, or nothing yet."""
    if not os.path.lexists(path):
        return
    if path.is_symlink() or not path.is_file() or re.fullmatch(rb"[0-9]{0,20}", _head(path)) is None:
        raise ValueError(
            f"{path}: not a lock file of subspacelab, and one is needed here; move it away, or give another place"
        )


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(21)
    except FileNotFoundError:  # its owner has ended
        return b""


def _lock_or_refuse(lock: IO[str], place: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        lock.seek(0)
        raise ValueError(
            f"{place}: another command is writing there (process {lock.read() or 'unknown'}); "
            "wait for its end, or give another place"
        ) from e


def _is_still(path: Path, lock: IO[str]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(lock.fileno()))
    except FileNotFoundError:
        return False


class _Entry(BaseModel):
    """The files that one command wrote into a folder."""

    job: dict[str, Any]
    files: dict[str, list[str]]
    """File name -> SHA-256 of its bytes; two values while the file is being replaced."""


@contextmanager
def report_folder(folder: Path, command: str, job: Mapping[str, Any], names: Iterable[str] = ()) -> Iterator[Path]:
    """Yields an empty folder for result files; on success they all appear in `folder` together.

    An existing file is replaced only if the manifest says that the same `command` wrote it for the same `job` (sources
    and settings), and if its bytes are unchanged; otherwise a ValueError names it. `names` are the file names known
    before the work, so that conflicts are found before the work.
    """
    with sole_writer(folder / MANIFEST):
        manifest = _read_manifest(folder / MANIFEST)
        before = manifest.get(command)
        if before is not None and not any(os.path.lexists(folder / name) for name in before.files):
            before = None  # that result was removed
        wanted = json.loads(json.dumps(dict(job), default=str))
        if before is not None:
            require_same_job(folder / min(before.files), before.job, wanted)
        own = before.files if before else {}
        _require_own_files(folder, names, own)
        remove_partials_of(folder / "report")
        with partial_folder(folder / "report") as scratch:
            yield scratch
            new = {str(p.relative_to(scratch)): sha256_file(p) for p in sorted(scratch.rglob("*")) if p.is_file()}
            _require_own_files(folder, new, own)
            # Both digests while the files move: a kill between two of them leaves no file without its proof.
            both = {name: [*own.get(name, []), digest] for name, digest in new.items()}
            _write_manifest(folder, manifest | {command: _Entry(job=wanted, files=own | both)})
            for name in new:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                with write_beside(folder / name) as partial:
                    shutil.move(scratch / name, partial)
            only = {name: [digest] for name, digest in new.items()}
            _write_manifest(folder, manifest | {command: _Entry(job=wanted, files=own | only)})


def written_names(folder: Path, command: str) -> set[str]:
    """Names of the files that `command` wrote into `folder`, according to its manifest."""
    entry = _read_manifest(folder / MANIFEST).get(command)
    return set(entry.files) if entry else set()


def _require_own_files(folder: Path, names: Iterable[str], own: Mapping[str, list[str]]) -> None:
    for name in names:
        path = folder / name
        path = next((p for p in path.parents if os.path.lexists(p) and not p.is_dir()), path)
        if os.path.lexists(path) and not (path.is_file() and sha256_file(path) in own.get(name, [])):
            raise ValueError(
                f"{path}: not written by this command, or changed since, and would be replaced; "
                "give another folder, or move it away first"
            )


def _read_manifest(path: Path) -> dict[str, _Entry]:
    if not path.exists():
        return {}
    try:
        return TypeAdapter(dict[str, _Entry]).validate_python(read_json(path))
    except ValidationError as e:
        raise ValueError(f"{path}: not a manifest of subspacelab; give another folder, or move it away first") from e


def _write_manifest(folder: Path, manifest: Mapping[str, _Entry]) -> None:
    write_json(folder / MANIFEST, {command: entry.model_dump() for command, entry in manifest.items()})
