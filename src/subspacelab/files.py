"""Files and folders that appear, and go, whole or not at all: written beside, then renamed."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PARTIAL = ".partial"  # ends the name of every folder that holds what is not yet whole


@contextmanager
def write_beside(path: Path) -> Iterator[Path]:
    """Yields a path of the same name in a folder of its own; moves it to `path` on success, removes it on failure.

    A folder, because some writers (safetensors) themselves write to a file of another name and rename it: a kill
    leaves theirs too where `remove_partials` finds it.
    """
    with _partial_folder(path) as folder:
        yield folder / path.name
        os.replace(folder / path.name, path)


@contextmanager
def replace_folder(final: Path) -> Iterator[Path]:
    """Yields an empty folder beside `final`; it takes the place of `final` on success and goes on failure."""
    with _partial_folder(final) as folder:
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
    """Removes a folder: what a kill leaves of it has another name, so that no half is taken for the whole."""
    with _partial_folder(path) as folder:
        _put_aside(path, folder)


def _put_aside(path: Path, folder: Path) -> None:
    """Out of the way by a rename: a kill leaves at `path` the old one or none, never a half."""
    if path.exists():
        os.replace(path, folder / "replaced")


@contextmanager
def _partial_folder(path: Path) -> Iterator[Path]:
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    shutil.rmtree(partial, ignore_errors=True)
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
    for partial in list(folder.rglob(f".*{PARTIAL}")):
        shutil.rmtree(partial, ignore_errors=True)


def remove_partials_of(path: Path) -> None:
    """Removes what killed processes left beside `path` of it alone; only for who knows that nobody writes it."""
    for partial in list(path.parent.glob(f".{path.name}.*{PARTIAL}")):
        shutil.rmtree(partial, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Writes sorted, indented JSON with a final newline, so that equal values are equal bytes."""
    with write_beside(path) as partial:
        partial.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads JSON; a broken file is a ValueError that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as e:
        raise ValueError(f"{path}: not valid JSON ({e}); restore or delete it") from e


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
