"""Errors as the user sees them: one line that names the thing and the remedy, and an exit code."""

import errno
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager

REMEDIES = {
    errno.ENOSPC: "free some space and run again",
    errno.EDQUOT: "free some space and run again",
    errno.EFBIG: "raise the limit of file sizes and run again",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "give another place",
    errno.EEXIST: "give another place",
    errno.EISDIR: "give another place",
    errno.ELOOP: "give another place",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EACCES: "give another place, or change its permissions",
    errno.EPERM: "give another place, or change its permissions",
    errno.EROFS: "give a place that can be written to",
}
"""Remedy for a system error, by its number."""


class SettingError(ValueError):
    """A setting that is unknown, of a wrong type or out of bounds; the message is one line with the remedy."""


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or of an unsupported kind; the message is one line with the remedy."""


UNEXPECTED = 70
"""Exit code of an unexpected error (EX_SOFTWARE of sysexits.h)."""

_CREDENTIALS = re.compile(r"(?<=://)[^/\s]*@")
_LONGEST = 2000  # characters of a line: a value that is quoted in it may be megabytes


@contextmanager
def one_line_errors(verbose: bool = False) -> Iterator[None]:
    """Turns an error into one line on standard error; `verbose` or VERBOSE=1 keeps the traceback.

    Exit code 1 for bad input and for too little memory, 70 for an unexpected error, 130 for Ctrl-C.
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
    """The text as one printable line, without control characters and without the user and password of an address."""
    words = _CREDENTIALS.sub("", " ".join(text.split()))
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words)
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST // 2]} [...] {shown[-_LONGEST // 2 :]}"


def _said(e: Exception) -> tuple[str, int]:
    """The message for an error, and its exit code."""
    if type(e).__name__ == "Abort" and isinstance(e.__cause__, EOFError):  # Typer's, without a word
        e = e.__cause__
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
    """The error itself; for shutil's list of errors from copying a folder, the first file's error."""
    listed = e.args[0] if isinstance(e, shutil.Error) and e.args else None
    if not isinstance(listed, list):
        return e
    _, place, why = listed[0]
    number = re.match(r"\[Errno (\d+)\]", str(why))
    return OSError(int(number[1]), os.strerror(int(number[1])), str(place)) if number else OSError(f"{place}: {why}")


def _is_torch_out_of_memory(e: Exception) -> bool:
    """Whether torch ran out of memory: on CUDA it raises a class of its own, on the CPU only the text tells."""
    return type(e).__name__ == "OutOfMemoryError" or (
        isinstance(e, RuntimeError) and "DefaultCPUAllocator: " in str(e) and "memory" in str(e)
    )
