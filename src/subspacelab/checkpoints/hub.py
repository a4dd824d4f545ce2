"""Checkpoints of the Hugging Face hub: one commit, one weight format, whole or by byte ranges."""

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from subspacelab.checkpoints.index import PREFERENCE, find_weights, read_weight_map
from subspacelab.core.errors import CheckpointError

SMALL_SUFFIXES = (".json", ".txt", ".model", ".jinja")
"""Config, index and tokenizer files, taken from the top folder only."""

TIMEOUT_SECONDS = 10.0
"""Seconds without an answer from the server, when connecting and between two pieces of data, before an attempt
fails."""


@dataclass(frozen=True)
class Listing:
    """A repository at one commit."""

    commit: str
    """The full hash."""
    files: tuple[str, ...]
    """All paths in the repository."""
    weights: str
    """The weight file or index to read: the first that exists in the order of `PREFERENCE`."""


def fetch_from_hub(repo: str, revision: str | None) -> tuple[Path, str]:
    """The local folder and commit of `repo` at `revision` (its main branch by default).

    Downloads what is missing; without a network the local cache is used. ValueError, in one line, if
    neither has it: the reference, the reason, and what to do instead.
    """
    try:
        return _download(repo, revision)
    except hub_errors() as e:
        return cached_or_refused(repo, revision, e)


def hub_errors() -> tuple[type[Exception], ...]:
    """Exceptions that the hub's client raises when it cannot deliver."""
    from huggingface_hub.errors import EntryNotFoundError, HTTPError  # the hub's client takes 0.5 s to import

    return OSError, HTTPError, EntryNotFoundError, RuntimeError  # RuntimeError: the hub's transfer library


def cached_or_refused(repo: str, revision: str | None, e: Exception) -> tuple[Path, str]:
    """Folder and commit from the local cache if it has the whole checkpoint; else a ValueError that explains `e`."""
    cached = _cached(repo, revision)
    if cached is not None:
        return cached
    asked = f"{repo}@{revision}" if revision else repo
    raise CheckpointError(f"{asked}: no such local folder, and {why_not(e)}") from e


def list_repository(repo: str, revision: str | None) -> Listing:
    """Commit and files of a repository; raises what the hub's client raises, ValueError if it has no weights."""
    from huggingface_hub import HfApi

    info = HfApi().model_info(repo, revision=revision, timeout=TIMEOUT_SECONDS)
    files = tuple(entry.rfilename for entry in info.siblings or [])
    weights = next((name for name in PREFERENCE if name in files), None)
    if weights is None:
        raise CheckpointError(
            f"{repo}@{info.sha}: no weights in this repository; expected one of {', '.join(PREFERENCE)}"
        )
    return Listing(str(info.sha), files, weights)


def fetch_file(repo: str, commit: str, name: str) -> Path:
    """One file of a commit, in the local cache."""
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(repo, name, revision=commit, etag_timeout=TIMEOUT_SECONDS))


def _download(repo: str, revision: str | None) -> tuple[Path, str]:
    from huggingface_hub import snapshot_download

    listing = list_repository(repo, revision)
    wanted = [name for name in listing.files if "/" not in name and name.endswith(SMALL_SUFFIXES)]
    if listing.weights.endswith(".json"):
        index = fetch_file(repo, listing.commit, listing.weights)
        wanted += sorted(set(read_weight_map(index).values()))
    else:
        wanted.append(listing.weights)
    # By branch and not by commit, so that the cache knows the branch when there is no network.
    folder = snapshot_download(repo, revision=revision, allow_patterns=wanted, etag_timeout=TIMEOUT_SECONDS)
    return Path(folder), Path(folder).name


def _cached(repo: str, revision: str | None) -> tuple[Path, str] | None:
    """The complete checkpoint in the local cache, if there is one; a cached snapshot is named by its commit."""
    from huggingface_hub import snapshot_download

    try:
        # The cache is asked for the smallest part: which weights belong to it is ours to check.
        folder = Path(snapshot_download(repo, revision=revision, local_files_only=True, allow_patterns=["config.json"]))
        find_weights(folder)
    except (OSError, ValueError):
        return None
    return folder, folder.name


def why_not(e: Exception) -> str:
    """The reason why the hub did not deliver, and the remedy, in one line."""
    from huggingface_hub.errors import (
        GatedRepoError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(e, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set and it is not in the cache; give a local folder, or `hf download` it first"
    if isinstance(e, GatedRepoError):
        return "the repository is gated on the hub; accept its licence there and run `hf auth login`"
    if isinstance(e, RevisionNotFoundError):
        return "the hub's repository has no such revision; give a branch, tag or commit that it has"
    if isinstance(e, RepositoryNotFoundError):
        return "the hub has no such repository, or it is private; check the name, or run `hf auth login`"
    first_line = str(e).partition("\n")[0]
    return (
        f"it could not be fetched from the hub ({type(e).__name__}: {first_line}); give a local folder instead, "
        "or run `hf download` where there is a network"
    )


MIN_BYTES_PER_SECOND = 10_000
"""Slowest accepted speed: an answer may take TIMEOUT_SECONDS plus its size at this speed; a slower one is a failure."""

WAITS = (0.5, 1.0, 2.0, 4.0)
"""Seconds before the second, third, ... attempt. When the last one fails, the read fails."""

RETRIED = (408, 429, 500, 502, 503, 504)
"""HTTP statuses after which another attempt may succeed."""

REMEDY = "`hf download` the checkpoint and give its folder instead"
REASONS: dict[int, str] = {
    200: "the server sends whole files only, no byte ranges",
    401: "the server asks for a login (run `hf auth login`)",
    403: "the server refuses it to this login",
    404: "no such file on the server",
}

CONTENT_RANGE = re.compile(r"bytes (?P<start>\d+)-(?P<last>\d+)/(?P<size>\d+)")


class Interrupted(Exception):
    """An attempt that failed for a temporary reason, which the message names."""


HEAD_BYTES = 1 << 16
"""Bytes of the first request to a file: usually enough for the whole safetensors header."""


class RemoteFile:
    """One file at a URL; its size is known after the first range.

    The hub redirects to the address where the file is stored. That address is signed and expires. It is kept, so that a
    range takes one request, and asked for again when it is refused. An address that fails on its second range is
    dropped.
    """

    def __init__(self, url: str, name: str) -> None:
        self.name = name
        """Name in error messages: repository, commit and file."""
        self.size: int | None = None
        """Size of the whole file in bytes, which the server states with each range."""
        self._url = url
        self._address: str | None = None
        self._keeps, self._reused = True, False
        self._head = bytearray()

    def read(self, start: int, stop: int) -> bytearray:
        """Bytes start:stop. ValueError, in one line, if they cannot be fetched.

        Bytes that arrived before a failure are kept; only the rest is requested again. A short first read from the
        start of the file fetches `HEAD_BYTES`, so that later reads within them need no request.
        """
        if self.size is None and start == 0 < stop < HEAD_BYTES:
            self._head = self._fetch(0, HEAD_BYTES, bytearray(), to_end=True)
        return self._fetch(start, stop, self._head[start:stop])

    def _fetch(self, start: int, stop: int, received: bytearray, *, to_end: bool = False) -> bytearray:
        """Bytes start:stop; the first ones are `received`. With `to_end`, a shorter file is read to its end."""
        for wait in (*WAITS, None):
            try:
                self._receive(start, stop, received, to_end)
                return received
            except Interrupted as e:
                if wait is None:
                    raise CheckpointError(
                        f"{self.name}: bytes {start}-{stop - 1} could not be read in {len(WAITS) + 1} attempts "
                        f"({e}); try again later, or `hf download` the checkpoint and give its folder"
                    ) from e
            time.sleep(wait)
        raise AssertionError("unreachable")

    def _receive(self, start: int, stop: int, received: bytearray, to_end: bool) -> None:
        """One attempt: appends the missing part of start:stop."""
        from huggingface_hub import get_session
        from huggingface_hub.errors import HTTPError
        from huggingface_hub.utils import build_hf_headers

        first, address = start + len(received), self._address
        if to_end and self.size is not None:
            stop = min(stop, self.size)
        if first >= stop:
            return
        elsewhere = address is not None and urlsplit(address).netloc != urlsplit(self._url).netloc
        headers = build_hf_headers(token=False if elsewhere else None)
        # Compressed on the way, a range would be one of the compressed bytes.
        headers |= {"Range": f"bytes={first}-{stop - 1}", "Accept-Encoding": "identity"}
        deadline = time.monotonic() + TIMEOUT_SECONDS + (stop - first) / MIN_BYTES_PER_SECOND
        try:
            request = get_session().stream("GET", address or self._url, headers=headers, timeout=TIMEOUT_SECONDS)
            with request as response:
                if address and response.status_code != 206:
                    self._address, self._keeps = None, self._reused
                    raise Interrupted(f"the server answered {response.status_code}")
                stop = self._ranged(response, first, stop, to_end)
                self._reused = address is not None
                if self._keeps and response.history:
                    self._address = str(response.url)
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

    def _ranged(self, response: Any, first: int, stop: int, to_end: bool) -> int:
        """Where the answer ends. Raises, before reading any data, if the answer is not the requested range."""
        status = response.status_code
        if status in RETRIED:
            raise Interrupted(f"the server answered {status}")
        found = CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if status == 206 and found:
            size = int(found["size"])
            end = min(stop, size) if to_end else stop
            if (int(found["start"]), int(found["last"])) == (first, end - 1):
                self.size = size
                return end
        raise CheckpointError(f"{self.name}: {_refusal(status, first, stop)}; {REMEDY}")


def _refusal(status: int, first: int, stop: int) -> str:
    """Why an answer cannot be used."""
    if status in (206, 416):
        return f"truncated on the server, bytes {first}-{stop - 1} are not all there"
    return REASONS.get(status, f"the server answered {status} to a range request")
