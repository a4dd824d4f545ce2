"""Text files: encoding, rows of JSON, and limits on the size of a file and of its unpacked content."""

import codecs
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

MAX_BYTES = 1 << 30
"""Largest file that is read, since text is read whole; MetaMathQA has 0.4 GB."""
MAX_UNPACKED = 1 << 28
"""Most characters that a compressed file may unpack to; a few hundred bytes may unpack to any number."""
ROW = 64
"""Characters that each row counts for in addition to its own, so that empty rows are limited, too."""

_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16's, which it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_HALF = re.compile("[\ud800-\udfff]")


def require_text_file(path: Path) -> None:
    """ValueError for a folder, pipe or device, and for a file of more than `MAX_BYTES`."""
    if not path.is_file():
        raise ValueError(f"{path}: not a regular file (a folder, a pipe or a device); give a file of text")
    if path.stat().st_size > MAX_BYTES:
        raise too_much(path)


def too_much(path: Path) -> ValueError:
    """The error for a file that holds more text than is allowed."""
    return ValueError(f"{path}: holds more text than is read from one file (1 GiB, packed 256 MiB); give a part of it")


@contextmanager
def open_text(path: Path) -> Iterator[io.TextIOWrapper]:
    """Opens a file, compressed (`.gz`) or not, as UTF-8 or by its byte order mark, whatever the locale.

    Damage found inside the block is a ValueError that names the file.
    """
    require_text_file(path)
    encoding = "utf-8"
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as raw:
            head = raw.peek(4)
            encoding = next((name for bom, name in _BOMS if head.startswith(bom)), encoding)
            if encoding == "utf-8" and b"\0" in head[:4]:
                raise ValueError(
                    f"{path}: not UTF-8 text (zero bytes, as in UTF-16 without a mark); convert it to UTF-8"
                )
            with io.TextIOWrapper(raw, encoding=encoding) as file:
                yield file
    except UnicodeDecodeError as e:
        raise ValueError(f"{path}: not {encoding.upper()} text ({e.reason}); convert it to UTF-8") from e
    except (EOFError, gzip.BadGzipFile, zlib.error) as e:
        raise ValueError(f"{path}: broken ({e}); restore it") from e


def json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """(`FILE, line N`, value) for each line of JSON that is not blank."""
    left = MAX_UNPACKED if path.suffix.lower() == ".gz" else MAX_BYTES
    with open_text(path) as file:
        for number in count(1):
            line = file.readline(left + 1)
            left -= len(line) + ROW
            if not line:
                return
            if left < 0:
                raise too_much(path)
            where = f"{path}, line {number}"
            if line.strip():
                yield where, _parsed(line, where)


def json_list(path: Path) -> Iterator[tuple[str, Any]]:
    """(`FILE, row N`, value) for each item of a file that is one JSON list."""
    with open_text(path) as file:
        rows = _parsed(file.read(), str(path))
    if not isinstance(rows, list):
        raise ValueError(f"{path}: a list of rows was expected, got {type(rows).__name__}")
    return ((f"{path}, row {i}", row) for i, row in enumerate(rows, start=1))


def require_characters(text: str, where: str) -> str:
    """`text`; ValueError if it holds half a surrogate pair, which JSON can write but tokenizers cannot read."""
    half = _HALF.search(text)
    if half:
        raise ValueError(
            f"{where}: holds half a surrogate pair (\\u{ord(half[0]):04x}), which is no character;"
            " write \\ufffd in its place, or remove the row"
        )
    return text


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{where}: not valid JSON ({e}); restore or remove it") from e
