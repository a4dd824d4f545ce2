"""Calls to a store that may go away in mid-run: kept, tried again, and written to a file when it does not come back."""

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

_PAUSE = 30.0  # seconds between attempts on a store that does not answer


class Unreachable(Exception):
    """The store did not answer: the same call may succeed later."""


class Refused(Exception):
    """The store answered no: the same call will never succeed."""


@dataclass(frozen=True)
class Letter:
    """One call to the store."""

    record: Mapping[str, object]
    """What the call says, as JSON values, for the file of what was not recorded."""
    deliver: Callable[[], None]
    """Makes the call; raises Unreachable or Refused."""


class Outbox:
    """Delivers letters in order; what the store does not take ends in `spill`, one JSON object a line."""

    def __init__(self, store: str, spill: Path) -> None:
        self._store, self._spill = store, spill
        self._waiting: list[Letter] = []
        self._lost: list[Letter] = []
        self._warned = False
        self._not_before = 0.0

    def send(self, letter: Letter) -> None:
        """Delivers the letter, or keeps it when the store does not take it; work is never stopped by that."""
        self._waiting.append(letter)
        if time.monotonic() >= self._not_before:
            self._work_off()

    def close(self) -> None:
        """Tries once more; what is still left goes to the file, and standard error says so in one line."""
        self._work_off()
        left = [*self._lost, *self._waiting]
        if left:
            self._spill.parent.mkdir(parents=True, exist_ok=True)
            with self._spill.open("a") as f:
                f.writelines(f"{json.dumps(letter.record, sort_keys=True, default=str)}\n" for letter in left)
            _say(f"{self._store} did not take {len(left)} record(s), kept in {self._spill}; no result is lost")

    def _work_off(self) -> None:
        while self._waiting:
            began = time.monotonic()
            try:
                self._waiting[0].deliver()
            except Unreachable as e:
                # A store that hangs instead of refusing may cost a tenth of the run's time, not more.
                self._not_before = time.monotonic() + max(_PAUSE, 10 * (time.monotonic() - began))
                self._warn(e)
                return
            except Refused as e:
                self._lost.append(self._waiting[0])
                self._warn(e)
            self._waiting.pop(0)

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            _say(f"{self._store} failed ({error}); the work goes on and its records are kept")


def _say(text: str) -> None:
    print(f"tracking: {text}", file=sys.stderr, flush=True)
