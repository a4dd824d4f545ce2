"""How a mistake reaches a person: one line that names the thing and the remedy, and exit code 1."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


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
        print(f"error: {' '.join(str(e).split())}", file=sys.stderr)
        raise SystemExit(1) from e
    except KeyboardInterrupt as e:
        print("error: interrupted; run the same command again to continue", file=sys.stderr)
        raise SystemExit(130) from e
