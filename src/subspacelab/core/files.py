"""Files and folders written and removed whole or not at all: written beside their place, then renamed."""

import errno
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

PARTIAL = ".partial"  # ends the name of every folder that holds what is not yet whole
_OURS = re.compile(r"\..+\.[0-9a-f]{32}\.partial", re.DOTALL)


@contextmanager
def write_beside(path: Path) -> Iterator[Path]:
    """Yields a path of the same name in a new folder; moves it to `path` on success, removes it on failure.

    A folder is needed because some writers (safetensors) write to a file of another name first. After a kill,
    `remove_partials` finds that file in the folder, too. A symbolic link is written through, not replaced.
    """
    path = through_links(path)
    with partial_folder(path) as folder:
        yield folder / path.name
        os.replace(folder / path.name, path)


@contextmanager
def replace_folder(final: Path) -> Iterator[Path]:
    """Yields an empty folder beside `final`; it replaces `final` on success and is removed on failure.

    Use it only if `final` is known to belong to the caller. A symbolic link is written through, not replaced.
    """
    final = through_links(final)
    with partial_folder(final) as folder:
        (folder / final.name).mkdir()
        yield folder / final.name
        _put_aside(final, folder)
        os.replace(folder / final.name, final)


def move_folder(source: Path, final: Path) -> None:
    """Moves a folder to `final`, whole or not at all, also from another file system."""
    with replace_folder(final) as partial:
        try:
            os.replace(source, partial)
        except OSError as e:
            if e.errno != errno.EXDEV:
                raise
            shutil.copytree(source, partial, dirs_exist_ok=True)
    if source.exists():
        remove_folder(source)


def remove_folder(path: Path) -> None:
    """Removes a folder. It is renamed first, so that after a kill no half-removed folder has its name.

    Use it only if the folder is known to belong to the caller.
    """
    with partial_folder(path) as folder:
        _put_aside(path, folder)


def _put_aside(path: Path, folder: Path) -> None:
    """Moves `path` away by one rename: after a kill there is the whole old one at `path`, or nothing."""
    if path.exists():
        os.replace(path, folder / "replaced")


def real_path(path: Path) -> Path:
    """The absolute path without links; for a link to itself, for which Path.resolve raises RuntimeError, that link."""
    return Path(os.path.realpath(path))


def seen_from(folder: Path, place: Path) -> str:
    """The relative path from `folder` to `place`: it stays the same if both are moved together."""
    return os.path.relpath(real_path(place), real_path(folder))


def through_links(path: Path) -> Path:
    """The path that output to `path` goes to: a symbolic link's target, else `path`; OSError for a loop of links."""
    if not path.is_symlink():
        return path
    target = real_path(path)
    if target.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    return target


@contextmanager
def partial_folder(path: Path) -> Iterator[Path]:
    """Yields an empty folder beside `path` for unfinished work; removed at the end or by `remove_partials_of(path)`."""
    # Not the process id: two containers on one volume may both be process 1.
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL}")
    try:
        partial.mkdir(parents=True)
        yield partial
    except OSError as e:
        if e.errno is None or (e.filename is not None and partial.name not in Path(e.filename).parts):
            raise
        raise OSError(e.errno, e.strerror, str(path)) from e  # the system names the partial one, or none
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_partials(folder: Path) -> None:
    """Removes partial files that killed processes left below `folder`; only if no other process writes there."""
    _remove_ours(folder.rglob(f".*{PARTIAL}"))


def remove_partials_of(path: Path) -> None:
    """Removes partial files that killed processes left for `path` alone; only if no other process writes it."""
    _remove_ours(p for p in path.parent.glob(f".*{PARTIAL}") if p.name.rsplit(".", 2)[0] == f".{path.name}")


def _remove_ours(found: Iterator[Path]) -> None:
    for partial in list(found):
        if is_partial(partial.name):
            shutil.rmtree(partial, ignore_errors=True)


def is_partial(name: str) -> bool:
    """Whether `name` is a name that only `partial_folder` gives: the leftover of a killed process."""
    return _OURS.fullmatch(name) is not None


def json_bytes(value: Any) -> bytes:
    """Sorted, indented JSON with a final newline, so that equal values are equal bytes."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    # What UTF-8 cannot say, half a surrogate pair, is written as JSON escapes it.
    return text.encode("utf-8", errors="backslashreplace")


def write_json(path: Path, value: Any) -> None:
    """Writes `json_bytes`, whole or not at all; a file with the same bytes is not touched."""
    write_if_changed(path, json_bytes(value))


def write_csv(path: Path, table: "pd.DataFrame") -> None:
    """Writes a table without its index, whole or not at all; the same bytes on every system."""
    with write_beside(path) as partial:
        table.to_csv(partial, index=False, lineterminator="\n", encoding="utf-8")


def write_if_changed(path: Path, data: bytes) -> None:
    """Writes a file, whole or not at all; a file with the same bytes is not touched."""
    if not holds(path, data):
        with write_beside(path) as partial:
            partial.write_bytes(data)


def holds(path: Path, data: bytes) -> bool:
    """Whether `path` is a file with exactly these bytes."""
    return path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data


def require_regular(path: Path) -> None:
    """ValueError for a pipe or a device: reading it may block, or never end."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: not a regular file; put the file itself there")


def expanded(path: str) -> Path:
    """The path with `~` as the home folder; `~name` of an unknown user is kept as it is."""
    return Path(os.path.expanduser(path))  # Path.expanduser raises RuntimeError


def read_json(path: Path) -> Any:
    """Reads JSON; ValueError, naming the file, if it is broken."""
    require_regular(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as e:
        raise ValueError(f"{path}: not valid JSON ({e}); restore or delete it") from e


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    require_regular(path)
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
