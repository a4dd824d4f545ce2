"""Byte ranges of a file over HTTP, through the hub's client: resumed when cut short, a few attempts each."""

import re
import time
from typing import Any

from subspacelab.core.errors import CheckpointError

MIN_BYTES_PER_SECOND = 10_000
"""A whole answer may take TIMEOUT_SECONDS and its size at this speed: a trickle is a failure, too."""

WAITS = (0.5, 1.0, 2.0, 4.0)
"""Seconds before the second, third, ... attempt; after the last one the range is given up."""

RETRIED = (408, 429, 500, 502, 503, 504)
"""Answers that may be different in a moment."""

REMEDY = "`hf download` the checkpoint and give its folder instead"
REASONS: dict[int, str] = {
    200: "the server sends whole files only, no byte ranges",
    401: "the server asks for a login (run `hf auth login`)",
    403: "the server refuses it to this login",
    404: "no such file on the server",
}

CONTENT_RANGE = re.compile(r"bytes (?P<start>\d+)-(?P<last>\d+)/(?P<size>\d+)")


class Interrupted(Exception):
    """An attempt that failed for now; the message says how."""


class RemoteFile:
    """One file at a URL; its size is known after the first range."""

    def __init__(self, url: str, name: str) -> None:
        self.name = name
        """What errors call it: repository, commit and file."""
        self.size: int | None = None
        """Bytes of the whole file, as the server says with each range."""
        self._url = url

    def read(self, start: int, stop: int) -> bytearray:
        """Bytes start:stop. ValueError, in one line, when they cannot be had.

        What arrived before a failure is kept, and only the rest is asked for again.
        """
        received = bytearray()
        for wait in (*WAITS, None):
            try:
                self._receive(start, stop, received)
                return received
            except Interrupted as e:
                if wait is None:
                    raise CheckpointError(
                        f"{self.name}: bytes {start}-{stop - 1} could not be read in {len(WAITS) + 1} attempts "
                        f"({e}); try again later, or `hf download` the checkpoint and give its folder"
                    ) from e
            time.sleep(wait)
        raise AssertionError("unreachable")

    def _receive(self, start: int, stop: int, received: bytearray) -> None:
        """One attempt: appends what of start:stop is still missing."""
        from huggingface_hub import get_session
        from huggingface_hub.errors import HTTPError
        from huggingface_hub.utils import build_hf_headers

        first = start + len(received)
        if first >= stop:
            return
        # Compressed on the way, a range would be one of the compressed bytes.
        headers = build_hf_headers() | {"Range": f"bytes={first}-{stop - 1}", "Accept-Encoding": "identity"}
        deadline = time.monotonic() + TIMEOUT_SECONDS + (stop - first) / MIN_BYTES_PER_SECOND
        try:
            with get_session().stream("GET", self._url, headers=headers, timeout=TIMEOUT_SECONDS) as response:
                self._require_range(response, first, stop)
                for piece in response.iter_bytes():
                    received += piece
                    if len(received) > stop - start:
                        raise CheckpointError(f"{self.name}: the server sends more than the range asked for; {REMEDY}")
                    if time.monotonic() > deadline:
                        raise Interrupted(f"slower than {MIN_BYTES_PER_SECOND // 1000} kB/s")
        except HTTPError as e:
            raise Interrupted(f"{type(e).__name__}: {str(e).partition(chr(10))[0]}") from e
        if len(received) != stop - start:
            raise Interrupted(f"{len(received)} of {stop - start} bytes arrived")

    def _require_range(self, response: Any, first: int, stop: int) -> None:
        """Whether the answer is the range that was asked for, before any of it is read."""
        status = response.status_code
        if status in RETRIED:
            raise Interrupted(f"the server answered {status}")
        found = CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if status == 206 and found and (int(found["start"]), int(found["last"])) == (first, stop - 1):
            self.size = int(found["size"])
            return
        raise CheckpointError(f"{self.name}: {_refusal(status, first, stop)}; {REMEDY}")


def _refusal(status: int, first: int, stop: int) -> str:
    """Why an answer is of no use."""
    if status in (206, 416):
        return f"truncated on the server, bytes {first}-{stop - 1} are not all there"
    return REASONS.get(status, f"the server answered {status} to a range request")
