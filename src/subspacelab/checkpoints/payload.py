"""Files of others before they are believed: a regular file with something in it, JSON by a schema."""

import stat
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")
LFS_HEAD = b"version https://git-lfs"
MAX_JSON_BYTES = 1 << 30
"""Of an index, a config or a tokenizer: the largest on the hub have some 20 MB."""


def require_payload(path: Path) -> None:
    """ValueError if the file is empty, a git-LFS pointer instead of the file it stands for, or no file to be read."""
    if not stat.S_ISREG(path.stat().st_mode):  # before it is opened: a pipe would wait, a device never ends
        raise ValueError(f"{path}: not a regular file; put the file itself there")
    with path.open("rb") as f:
        head = f.read(len(LFS_HEAD))
    if not head:
        raise ValueError(f"{path}: empty file; download it again")
    if head == LFS_HEAD:
        raise ValueError(f"{path}: a git-LFS pointer, not the file itself; run `git lfs pull` in its repository")


def read_checked(path: Path, schema: TypeAdapter[T], what: str) -> T:
    """The JSON in a file by its schema; ValueError, naming the file and the key, if it is not `what`."""
    require_payload(path)
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(f"{path}: {path.stat().st_size} bytes, more than {what} has; restore it")
    return checked_json(path.read_bytes(), schema, str(path), what, "restore it")


def checked_json(text: bytes | bytearray, schema: TypeAdapter[T], place: str, what: str, remedy: str) -> T:
    """The JSON of a `place` by the schema of `what` it is to be; else a ValueError of one line.

    Numbers are no texts and texts no numbers. The line names the innermost key that is wrong; it comes for text that
    is no JSON or no UTF-8, and for nesting without end, too.
    """
    try:
        return schema.validate_json(text, strict=True)
    except ValidationError as e:
        worst = max(e.errors(include_url=False, include_input=False), key=lambda error: len(error["loc"]))
        keys = [str(key) for key in worst["loc"] if "[" not in str(key)]  # pydantic puts the branches of a union there
        where = f"{'.'.join(keys)}: " if keys else ""
        wanted = "valid JSON" if worst["type"] == "json_invalid" else what
        raise ValueError(f"{place}: not {wanted} ({where}{worst['msg']}); {remedy}") from e
