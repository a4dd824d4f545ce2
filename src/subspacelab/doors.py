"""The outermost frame of every process of ours: a door of the pipeline, and the command line."""

import atexit
import inspect
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from subspacelab.errors import one_line_errors


def run_door(main: Callable[..., None]) -> NoReturn:
    """Calls a door's `main` with the words of the command line; a mistake is one line and exit code 1."""

    def work() -> None:
        with one_line_errors():
            main(*_words(main))

    run_process(work)


def run_process(work: Callable[[], None]) -> NoReturn:
    """Calls `work` and ends the process as Python would, but leaves the memory to the system.

    Python takes apart, object by object, what torch, transformers and MLflow have imported: a second and more.
    """
    code: int | str | None = None
    try:
        work()
    except SystemExit as e:
        code = e.code
    # What Python itself does first, in its order: idle pools end, threads at work are waited for, exit functions run.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    if isinstance(code, str) or not _flushed():
        sys.exit(code)  # Python itself says what is to be said
    os._exit(code or 0)


def _flushed() -> bool:
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:  # nobody reads any more, or the disk is full
        return False
    return True


def _words(main: Callable[..., None]) -> list[str]:
    wanted, given = [f"<{name}>" for name in inspect.signature(main).parameters], sys.argv[1:]
    if len(given) != len(wanted):
        door = Path(sys.argv[0]).name
        raise ValueError(f"{door} takes {' '.join(wanted) or 'no word'}, not {given}; dvc.yaml shows how it is called")
    return given
