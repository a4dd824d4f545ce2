"""SIGTERM and SIGHUP end a run as an exception does, while a run is open and not a moment longer."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


class Terminated(SystemExit):
    """The process was asked to end; its exit code is 128 + the signal's number, as a shell reports it."""


@contextmanager
def signals_as_exceptions() -> Iterator[None]:
    """Within the block the first SIGTERM or SIGHUP raises Terminated; further ones wait for the clean-up."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    owner, raised = os.getpid(), False

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal raised
        if os.getpid() != owner:  # a forked worker: not its run
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif not raised:
            raised = True
            raise Terminated(128 + number)

    # What is ignored stays ignored: nohup sets SIGHUP so.
    before = {s: signal.getsignal(s) for s in _SIGNALS if signal.getsignal(s) is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def status_of(error: BaseException) -> str:
    """The status of a run that ended with `error`: KILLED from outside, FINISHED by `sys.exit(0)`, else FAILED."""
    if isinstance(error, (KeyboardInterrupt, Terminated)):
        return "KILLED"
    return "FINISHED" if isinstance(error, SystemExit) and error.code in (None, 0) else "FAILED"
