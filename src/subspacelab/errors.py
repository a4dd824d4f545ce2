"""How a mistake reaches a person: one line that names the thing and the remedy, and exit code 1."""

import errno
import os
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
    errno.EACCES: "give a place that you may use, or change who may",
    errno.EPERM: "give a place that you may use, or change who may",
    errno.EROFS: "give a place that can be written to",
}
"""What helps when the system refuses, by its number."""


@contextmanager
def one_line_errors(verbose: bool = False) -> Iterator[None]:
    """Turns bad input into one line on standard error and exit code 1; `verbose` or VERBOSE=1 keeps the traceback.

    Only what bad input raises is caught (ValueError, OSError, ImportError); a fault of ours keeps its traceback.
    """
    try:
        yield
    except (ValueError, OSError, ImportError) as e:
        if verbose or os.environ.get("VERBOSE"):
            raise
        print(f"error: {' '.join(_said(e).split())}", file=sys.stderr)
        raise SystemExit(1) from e
    except KeyboardInterrupt as e:
        print("error: interrupted; run the same command again to continue", file=sys.stderr)
        raise SystemExit(130) from e


def _said(e: Exception) -> str:
    """The message; of what the system refused, the file, why, and what helps."""
    if isinstance(e, OSError) and e.errno in REMEDIES:
        return f"{e.filename or 'a file'}: {e.strerror}; {REMEDIES[e.errno]}"
    return str(e)
