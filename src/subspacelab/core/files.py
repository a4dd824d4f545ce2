"""Files and folders that appear, and go, whole or not at all: written beside, then renamed."""

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
    """Yields a path of the same name in a folder of its own; moves it to `path` on success, removes it on failure.

    A folder, because some writers (safetensors) themselves write to a file of another name and rename it: a kill
    leaves theirs too where `remove_partials` finds it. A symbolic link is written through, not replaced.
    """
    path = through_links(path)
    with partial_folder(path) as folder:
        yield folder / path.name
        os.replace(folder / path.name, path)


@contextmanager
def replace_folder(final: Path) -> Iterator[Path]:
    """Yields an empty folder beside `final`; it takes the place of `final` on success and goes on failure.

    Only for a `final` that the caller knows to be its own. A symbolic link is written through, not replaced.
    """
    final = through_links(final)
    with partial_folder(final) as folder:
        (folder / final.name).mkdir()
        yield folder / final.name
        _put_aside(final, folder)
        os.replace(folder / final.name, final)


def move_folder(source: Path, final: Path) -> None:
    """Puts a folder in the place of `final`, whole or not at all, from another file system too."""
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
    """Removes a folder: what a kill leaves of it has another name, so that no half is taken for the whole.

    Only for a folder that the caller knows to be its own.
    """
    with partial_folder(path) as folder:
        _put_aside(path, folder)


def _put_aside(path: Path, folder: Path) -> None:
    """Out of the way by a rename: a kill leaves at `path` the old one or none, never a half."""
    if path.exists():
        os.replace(path, folder / "replaced")


def real_path(path: Path) -> Path:
    """The absolute path without links; where Path.resolve raises RuntimeError, a link to itself, that link."""
    return Path(os.path.realpath(path))


def seen_from(folder: Path, place: Path) -> str:
    """The way from `folder` to `place`, however either is typed: it stays the same when both are moved together."""
    return os.path.relpath(real_path(place), real_path(folder))


def through_links(path: Path) -> Path:
    """Where output to `path` is written: a symbolic link's target, else `path` as it is typed; OSError for a loop."""
    if not path.is_symlink():
        return path
    target = real_path(path)
    if target.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    return target


@contextmanager
def partial_folder(path: Path) -> Iterator[Path]:
    """Yields an empty folder beside `path` for work on it; it goes at the end, or with `remove_partials_of(path)`."""
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
    """Removes what killed processes left half-written below `folder`; only for who knows that nobody writes there."""
    _remove_ours(folder.rglob(f".*{PARTIAL}"))


def remove_partials_of(path: Path) -> None:
    """Removes what killed processes left beside `path` of it alone; only for who knows that nobody writes it."""
    _remove_ours(p for p in path.parent.glob(f".*{PARTIAL}") if p.name.rsplit(".", 2)[0] == f".{path.name}")


def _remove_ours(found: Iterator[Path]) -> None:
    for partial in list(found):
        if is_partial(partial.name):
            shutil.rmtree(partial, ignore_errors=True)


def is_partial(name: str) -> bool:
    """Whether `name` is one that only `partial_folder` gives: what a killed process of ours has left."""
    return _OURS.fullmatch(name) is not None


def json_bytes(value: Any) -> bytes:
    """Sorted, indented JSON with a final newline, so that equal values are equal bytes."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    # What UTF-8 cannot say, half a surrogate pair, is written as JSON escapes it.
    return text.encode("utf-8", errors="backslashreplace")


def write_json(path: Path, value: Any) -> None:
    """Writes `json_bytes`, whole or not at all; a file of these bytes is left alone."""
    write_if_changed(path, json_bytes(value))


def write_csv(path: Path, table: "pd.DataFrame") -> None:
    """Writes a table without its index, whole or not at all; the same bytes on every system."""
    with write_beside(path) as partial:
        table.to_csv(partial, index=False, lineterminator="\n", encoding="utf-8")


def write_if_changed(path: Path, data: bytes) -> None:
    """Writes a file, whole or not at all; one of these very bytes is left alone."""
    if not holds(path, data):
        with write_beside(path) as partial:
            partial.write_bytes(data)


def holds(path: Path, data: bytes) -> bool:
    """Whether `path` is a file of exactly these bytes."""
    return path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data


def require_regular(path: Path) -> None:
    """ValueError for a pipe, which would be waited for, or a device, which may never end."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: not a regular file; put the file itself there")


def expanded(path: str) -> Path:
    """The path with `~` as the home folder; of somebody unknown it is a name like any other."""
    return Path(os.path.expanduser(path))  # Path.expanduser raises RuntimeError


def read_json(path: Path) -> Any:
    """Reads JSON; a broken file is a ValueError that names it."""
    require_regular(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as e:
        raise ValueError(f"{path}: not valid JSON ({e}); restore or delete it") from e


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    require_regular(path)
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
