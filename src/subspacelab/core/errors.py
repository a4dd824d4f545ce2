"""How a mistake reaches a person: one line that names the thing and the remedy, and an exit code."""

import errno
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager

REMEDIES = {
    errno.ENOSPC: "make room and run again",
    errno.EDQUOT: "make room and run again",
    errno.EFBIG: "raise the limit of file sizes and run again",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "give another place",
    errno.EEXIST: "give another place",
    errno.EISDIR: "give another place",
    errno.ELOOP: "give another place",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EACCES: "give a place that you may use, or change who may",
    errno.EPERM: "give a place that you may use, or change who may",
    errno.EROFS: "give a place that can be written to",
}
"""What helps when the system refuses, by its number."""


class SettingError(ValueError):
    """A setting that is unknown, of another type or out of its bounds; the message is one line with its remedy."""


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or of a kind that is not read; the message is one line with its remedy."""


UNEXPECTED = 70
"""Exit code of an error that nobody foresaw (EX_SOFTWARE of sysexits.h)."""

_CREDENTIALS = re.compile(r"(?<=://)[^/\s]*@")
_LONGEST = 2000  # characters of a line: a value that is quoted in it may be megabytes


@contextmanager
def one_line_errors(verbose: bool = False) -> Iterator[None]:
    """Turns an error into one line on standard error; `verbose` or VERBOSE=1 keeps the traceback.

    Exit code 1 for bad input and for too little memory, 70 for what nobody foresaw, 130 for Ctrl-C.
    """
    try:
        yield
    except KeyboardInterrupt as e:
        print("error: interrupted; run the same command again to continue", file=sys.stderr)
        raise SystemExit(130) from e
    except Exception as e:  # the last frame of a process: whatever comes, one line goes out
        if verbose or os.environ.get("VERBOSE"):
            raise
        said, code = _said(e)
        print(f"error: {printable(said)}", file=sys.stderr)
        raise SystemExit(code) from e


def printable(text: str) -> str:
    """The text as one line that a terminal shows and does not obey, without the user and password of an address."""
    words = _CREDENTIALS.sub("", " ".join(text.split()))
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words)
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST // 2]} [...] {shown[-_LONGEST // 2 :]}"


def _said(e: Exception) -> tuple[str, int]:
    """What to say of an error, and the exit code."""
    if isinstance(e, MemoryError) or _is_torch_out_of_memory(e):
        return "out of memory; choose a smaller model, batch or size, or a machine with more", 1
    if isinstance(e, RecursionError):
        return "an input is nested too deeply to be read; --verbose shows which", 1
    e = first_of(e)
    if isinstance(e, OSError) and e.errno in REMEDIES:
        return f"{e.filename or 'a file'}: {e.strerror}; {REMEDIES[e.errno]}", 1
    if isinstance(e, (ValueError, OSError, ImportError)):
        return str(e) or f"{type(e).__name__} without a message; --verbose shows where", 1
    return f"unexpected {type(e).__name__}: {e}; --verbose shows where; please report", UNEXPECTED


def first_of(e: Exception) -> Exception:
    """The first file's error, where shutil has copied a folder and lists those of all files; else the error itself."""
    listed = e.args[0] if isinstance(e, shutil.Error) and e.args else None
    if not isinstance(listed, list):
        return e
    _, place, why = listed[0]
    number = re.match(r"\[Errno (\d+)\]", str(why))
    return OSError(int(number[1]), os.strerror(int(number[1])), str(place)) if number else OSError(f"{place}: {why}")


def _is_torch_out_of_memory(e: Exception) -> bool:
    """Of torch's errors for it the CUDA one has a class, the CPU's only a text."""
    return type(e).__name__ == "OutOfMemoryError" or (
        isinstance(e, RuntimeError) and "DefaultCPUAllocator: " in str(e) and "memory" in str(e)
    )
