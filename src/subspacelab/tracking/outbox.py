"""Calls to a store that may fail during a run: kept, retried, and written to a file if the store does not return."""

import json
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from subspacelab.core.errors import first_of
from subspacelab.core.files import write_beside

_PAUSE = 30.0  # seconds between attempts on a store that does not answer

Record = dict[str, Any]
"""One call to the store as JSON values, with `run_id`, the run it belongs to."""

FILES = ("artifact", "files")
"""Keys of a record that hold paths of files or folders to be sent."""

PACKAGE = Path(__file__).resolve().parents[1]
"""Package that holds all code a record may name: a later delivery must not run any other code."""


class Unreachable(Exception):
    """The store did not answer; the same call may succeed later."""


class Refused(Exception):
    """The store rejected the call; the same call will never succeed."""


class Outbox:
    """Delivers records in order; what the store does not take ends in `spill`, one JSON object a line.

    `deliver` makes the call that a record stands for; it raises Unreachable or Refused. Several threads may send.
    """

    def __init__(self, store: str, spill: Path, deliver: Callable[[Record], None]) -> None:
        self._store, self._spill, self._deliver = store, spill, deliver
        self._waiting: list[Record] = []
        self._lost: list[Record] = []
        self._warned = False
        self._not_before = 0.0
        self._one_at_a_time = threading.RLock()

    def send(self, record: Record) -> None:
        """Delivers the record, or keeps it if the store does not accept it; never stops the work."""
        with self._one_at_a_time:
            self._waiting.append(record)
            if time.monotonic() >= self._not_before:
                self._work_off()
            for kept in (self._waiting, self._lost):
                if kept and kept[-1] is record:
                    kept[-1] = self._with_copies(record)

    def close(self) -> None:
        """Tries once more; the remaining records are written to the file, and one line on standard error says so."""
        self._work_off()
        left = [*self._lost, *self._waiting]
        if left:
            _say(f"{self._store} did not take {len(left)} record(s), {self._keep(left)}")
        else:
            shutil.rmtree(copies_of(self._spill), ignore_errors=True)

    def _keep(self, left: list[Record]) -> str:
        """Writes the remaining records and reports where; a failure to write does not stop the work either."""
        try:
            write_records(self._spill, left)
        except OSError as e:
            return (
                f"which are lost, for {e.filename or self._spill} cannot be written ({e.strerror}); no result is lost"
            )
        return f"kept in {self._spill}; no result is lost, and 'subspacelab runs sync' delivers them"

    def _work_off(self) -> None:
        while self._waiting:
            began = time.monotonic()
            try:
                self._deliver(self._waiting[0])
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

    def _with_copies(self, record: Record) -> Record:
        """The record with its files copied beside the spill: theirs may be gone, or others', when the store is back.

        Code is no file of it: it is named within this package.
        """
        code = Path(record["code"]).resolve() if "code" in record else None
        named = {"code": code.relative_to(PACKAGE).as_posix()} if code and PACKAGE in code.parents else {}
        try:
            return record | named | {key: str(self._copy(Path(record[key]))) for key in FILES if key in record}
        except OSError as e:  # a full disk: the files stay where they are
            self._warn(first_of(e))
            return record

    def _copy(self, path: Path) -> Path:
        folder = copies_of(self._spill)
        folder.mkdir(parents=True, exist_ok=True)
        home = folder / str(len(list(folder.iterdir())))
        home.mkdir()
        return Path(shutil.copytree(path, home / path.name) if path.is_dir() else shutil.copy2(path, home / path.name))


def spill_file(folder: Path, run_id: str) -> Path:
    """The file for the remaining records of a run; ValueError for an id that would lead to another folder."""
    if not re.fullmatch(r"[\w-]+", run_id, re.ASCII):
        raise ValueError(f"the store names a run {run_id!r}, which is no plain name; check what answers there")
    return folder / f"{run_id}.jsonl"


def copies_of(spill: Path) -> Path:
    """The folder with the files that the records in `spill` name."""
    return spill.with_suffix("")


def write_records(spill: Path, records: list[Record]) -> None:
    """Writes the records, one JSON object per line; without records, the file and the copies are removed."""
    if not records:
        spill.unlink()
        shutil.rmtree(copies_of(spill), ignore_errors=True)
        return
    with write_beside(spill) as partial:
        text = "".join(f"{json.dumps(record, sort_keys=True, default=str)}\n" for record in records)
        partial.write_text(text, encoding="utf-8")


def read_records(spill: Path) -> list[Record]:
    """Reads what `write_records` wrote; ValueError, naming it, for a broken line."""
    records = []
    for number, line in enumerate(spill.read_bytes().splitlines(), start=1):
        where, remedy = f"{spill}, line {number}", "delete the line or the file"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as e:
            raise ValueError(f"{where}: not valid JSON ({e}); {remedy}") from e
        if not isinstance(record, dict):
            raise ValueError(f"{where}: a {type(record).__name__}, not a record; {remedy}")
        records.append(record)
    return records


def _say(text: str) -> None:
    print(f"tracking: {text}", file=sys.stderr, flush=True)
