"""Start and end of every process of this project: a stage script of the pipeline, or the command line."""

import inspect
import io
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from subspacelab.core.errors import one_line_errors


def run_stage_script(main: Callable[..., None]) -> None:
    """Calls a stage script's `main` with the command line's arguments; an error is one line and an exit code."""

    def work() -> None:
        with one_line_errors("--verbose" in sys.argv):
            main(*_words(main))

    run_process(work)


def run_process(work: Callable[[], None]) -> None:
    """Runs `work` as the whole process: output streams never fail, and libraries print nothing unless asked to."""
    _read_names_as_utf8()
    steady_streams()
    if not (os.environ.get("VERBOSE") or "--verbose" in sys.argv):
        quieten_libraries()
    try:
        work()
    finally:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # all is said: a Ctrl-C from here on ends it without a word


def _read_names_as_utf8() -> None:
    """Starts the process again in Python's UTF-8 mode where the locale has another encoding.

    tokenizers and safetensors take UTF-8 paths only, and a name that is stored must be found in any locale. What is
    printed keeps the terminal's encoding.
    """
    if sys.getfilesystemencoding() != "utf-8" and sys.executable:
        shown = os.environ.get("PYTHONIOENCODING") or getattr(sys.stdout, "encoding", None) or "utf-8"
        environment = os.environ | {"PYTHONUTF8": "1", "PYTHONIOENCODING": shown}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def quieten_libraries() -> None:
    """Hides log messages and warnings of libraries, so that an error stays one line; their exceptions are reported."""
    logging.captureWarnings(True)
    logging.disable(logging.WARNING)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else it warns at each fork


def steady_streams() -> None:
    """Output never fails: characters that a terminal cannot show are escaped, closed streams discard their input."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the free number: else the next file opened would get what is printed
    sys.stdout, sys.stderr = _steady(sys.stdout, 1), _steady(sys.stderr, 2)


def _steady(stream: Any, number: int) -> TextIO:
    encoding, by_line = (stream.encoding, stream.line_buffering or stream.write_through) if stream else ("utf-8", False)
    raw = io.BufferedWriter(_Unbroken(number, "w", closefd=False))
    return io.TextIOWrapper(raw, encoding, errors="backslashreplace", line_buffering=by_line or number == 2)


class _Unbroken(io.FileIO):
    """A file whose reader may close it early (`| head -1`)."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            return len(memoryview(data).cast("B"))


def _words(main: Callable[..., None]) -> list[str]:
    wanted = [f"<{name}>" for name in inspect.signature(main).parameters]
    given = [word for word in sys.argv[1:] if word != "--verbose"]
    if len(given) != len(wanted):
        script = Path(sys.argv[0]).name
        raise ValueError(
            f"{script} takes {' '.join(wanted) or 'no word'}, not {given}; dvc.yaml shows how it is called"
        )
    return given
