"""Pictures decoded ahead by separate processes, so that the computing process does not wait for them."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import cache
from queue import SimpleQueue
from time import perf_counter
from types import TracebackType
from typing import Any, TypeVar

from subspacelab.data import decoding
from subspacelab.data.decoding import READY, DecodedSquare
from subspacelab.data.pictures import Picture, SquarePicture, square, squared

T = TypeVar("T")

MOST_WORKERS = 8
KEPT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**27)}
"""glibc's settings (man mallopt) by which a process keeps a picture's memory for the next one; else each page of each
picture comes from the system anew, and decoding takes 1.4 times as long."""


def choose_workers(num_processes: int = 1) -> int:
    """Decoding processes for each of `num_processes` computing ones: its share of the cores, less one for itself."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_WORKERS, max(1, cores // num_processes - 1))


class DecodePool:
    """A context manager with decoding processes; with none, a picture is decoded when its result is asked for.

    The processes run only `data/decoding.py`: they import neither torch nor the main program. They end when the main
    process ends, in whatever way, because they then get no more requests.
    """

    def __init__(self, num_workers: int) -> None:
        """The processes start with the first picture. If the system forbids it, one line says so and there are none."""
        self._stack = ExitStack()
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        self._spent: list[float] = []
        self.num_workers = num_workers
        """Number of processes."""
        self._threads: ThreadPoolExecutor | None = None

    def __enter__(self) -> "DecodePool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._stack.close()  # what a thread still waits for ends with it
            self._threads.shutdown()

    @property
    def seconds(self) -> float:
        """Seconds that these processes would have needed for all pictures, had they worked without pauses."""
        return sum(self._spent) / max(1, self.num_workers)

    def begin(self, picture: Picture, size: int) -> Callable[[], SquarePicture]:
        """Starts decoding a picture; calls are served in order. The result blocks until done and raises as `square`."""
        if self._threads is None and self.num_workers:
            self._start()
        if self._threads is None:
            return cache(lambda: self._timed(lambda: square(picture, size)))
        return self._threads.submit(self._elsewhere, picture, size).result

    def _start(self) -> None:
        try:
            workers = [self._stack.enter_context(_Worker()) for _ in range(self.num_workers)]
            for worker in workers:
                worker.require_ready()
                self._idle.put(worker)
        except OSError as e:
            self._stack.close()
            self.num_workers = 0
            print(f"note: no process can be started to decode pictures ({e}); decoding in this one", file=sys.stderr)
        else:
            self._threads = ThreadPoolExecutor(self.num_workers)

    def _elsewhere(self, picture: Picture, size: int) -> SquarePicture:
        worker = self._idle.get()
        try:
            return squared(self._timed(lambda: worker.decode(picture, size)), picture.bbox, size)
        finally:
            self._idle.put(worker)

    def _timed(self, decode: Callable[[], T]) -> T:
        begin = perf_counter()
        try:
            return decode()
        finally:
            self._spent.append(perf_counter() - begin)


class _Worker:
    """One decoding process and its pipes; see `decoding.serve`."""

    def __init__(self) -> None:
        # In a session of its own: a Ctrl-C is for the program, which ends its workers.
        self._process = subprocess.Popen(
            [sys.executable or "", "-P", decoding.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            env=KEPT_MEMORY | os.environ,
        )
        assert self._process.stdin
        assert self._process.stdout
        self._requests, self._replies = self._process.stdin, self._process.stdout

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._requests, self._replies):
            with suppress(OSError):  # what was not sent yet
                stream.close()

    def require_ready(self) -> None:
        """OSError if the process has not started."""
        if self._replies.readline() != READY:
            raise OSError(f"it ended at once, with exit code {self._process.wait()}")

    def decode(self, picture: Picture, size: int) -> DecodedSquare:
        """The decoded picture; ValueError if it is not a picture, ChildProcessError if the process ended."""
        try:
            head = self._ask({"name": picture.dataset_id, "size": size}, picture.image_bytes)
            pixels, jpeg = (self._read(head.get(part, 0)) for part in ("pixels", "jpeg"))
        except (OSError, EOFError) as e:
            how = self._process.wait()
            raise ChildProcessError(
                f"{picture.dataset_id}: the process that decodes it has ended (exit code {how}); there may be too "
                "little memory: choose fewer `decode_workers`, or 0"
            ) from e
        if "error" in head:
            raise ValueError(head["error"])
        return DecodedSquare(head["width"], head["height"], pixels, jpeg)

    def _ask(self, asked: dict[str, Any], encoded: bytes) -> dict[str, Any]:
        """Sends a request; the first line of the reply."""
        self._requests.writelines((json.dumps(asked | {"bytes": len(encoded)}).encode(), b"\n", encoded))
        self._requests.flush()
        line = self._replies.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        return dict(json.loads(line))

    def _read(self, count: int) -> bytes:
        content = self._replies.read(count)
        if len(content) < count:
            raise EOFError
        return content
