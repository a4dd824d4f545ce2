"""A headless Chromium over DevTools' pipe, without a driver: what a page logs and asks for, what a click changes."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "headless_shell")


def find_chromium() -> str:
    """The program that $CHROMIUM names, or one on the path; without any the test is skipped."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if not found:
        pytest.skip(f"no Chromium: none of {', '.join(NAMES)} on the path, and CHROMIUM names none")
    return found


_AS_3_AND_4 = """
import fcntl, os, sys
read, write = (fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3])
os.dup2(read, 3)
os.dup2(write, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""Where Chromium looks for the pipe."""


class Tab:
    """One page; `events` are what DevTools reported so far."""

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read, self._left, self._ids = write, read, b"", count(1)
        self.events: list[dict[str, Any]] = []
        self._session: dict[str, str] = {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A command of DevTools and its result."""
        number = next(self._ids)
        os.write(
            self._write, json.dumps({"id": number, "method": method, "params": params} | self._session).encode() + b"\0"
        )
        while (message := self._next()).get("id") != number:
            self.events.append(message)
        assert "error" not in message, message["error"]
        return message["result"]

    def open(self, path: Path) -> None:
        """Opens a file and waits until it is loaded."""
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        while not self.reported("Page.loadEventFired"):
            self.events.append(self._next())

    def reported(self, *methods: str) -> list[dict[str, Any]]:
        """What DevTools reported under these names."""
        return [event["params"] for event in self.events if event.get("method") in methods]

    def eval(self, script: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        done = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def wait_for(self, condition: str) -> None:
        """Waits, at most 20 seconds, until a JavaScript expression is true."""
        tick = f"new Promise((yes, no) => {{ const t = Date.now(), look = () => ({condition}) ? yes(true) : "
        assert self.eval(tick + "Date.now() - t > 20000 ? yes(false) : setTimeout(look, 20); look(); })"), condition

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._left:
            data = os.read(self._read, 1 << 20)
            assert data, "Chromium ended"
            self._left += data
        message, _, self._left = self._left.partition(b"\0")
        return json.loads(message)


@contextmanager
def open_tab(program: str, profile: Path) -> Iterator[Tab]:
    """A tab of a browser of its own, which ends with the block."""
    (its_read, our_write), (our_read, its_write) = os.pipe(), os.pipe()
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe"]
    start = [sys.executable, "-c", _AS_3_AND_4, str(its_read), str(its_write)]
    words = [*start, program, *flags, f"--user-data-dir={profile}"]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(words, pass_fds=(its_read, its_write), stdout=quiet, stderr=quiet) as process:
        os.close(its_read)
        os.close(its_write)
        try:
            yield Tab(our_write, our_read)
        finally:
            process.kill()
            os.close(our_write)
            os.close(our_read)
