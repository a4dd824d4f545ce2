"""A hub on loopback that answers byte ranges as the real one does, counts what it sends, and can misbehave."""

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "lab/tiny"
PIECE = 1 << 16


class RangeHub(ThreadingHTTPServer):
    """Serves the files of `root` as repository lab/tiny at COMMIT; weights lie behind a redirect, as on the hub."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.root = root
        self.sent: Counter[str] = Counter()
        """File -> bytes of it that were sent."""
        self.requests: list[tuple[str, str | None]] = []
        """File and Range of every request for a file."""
        self.redirects = 0
        """Requests that were sent on to where a file lies."""
        self.faults: list[str] = []
        """What goes wrong with the next requests: 500, 429, drop, stall, trickle, short, more, whole, 404."""
        self.delay = 0.0
        """Seconds before each answer, as of a hub that is far away."""
        self.lock = threading.Lock()

    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing: clients that go away in mid-answer are part of the game."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def weight_url(self, name: str) -> str:
        return f"{self.url}/{REPO}/resolve/{COMMIT}/{name}"


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: RangeHub

    def do_POST(self) -> None:
        """What `HfFileSystem` asks first: the sizes of files."""
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        named = [p for p in self.server.root.iterdir() if p.name in body]
        entries = [{"type": "file", "path": p.name, "size": p.stat().st_size, "oid": p.name} for p in named]
        self.answer(200, json.dumps(entries).encode())

    def do_GET(self) -> None:
        time.sleep(self.server.delay)
        path = self.path.partition("?")[0]
        if path.startswith(f"/api/models/{REPO}"):
            files = sorted(self.server.root.iterdir())
            if "/tree/" in path:
                entries = [{"type": "file", "path": p.name, "size": p.stat().st_size, "oid": p.name} for p in files]
                return self.answer(200, json.dumps(entries).encode())
            siblings = [{"rfilename": p.name} for p in files]
            return self.answer(200, json.dumps({"id": REPO, "sha": COMMIT, "siblings": siblings}).encode())
        name = path.rpartition("/")[2]
        file = self.server.root / name
        if not file.is_file():
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        if name.endswith(".safetensors") and not path.startswith("/cdn/"):
            with self.server.lock:
                self.server.redirects += 1
            return self.answer(302, b"", {"Location": f"{self.server.url}/cdn/{name}"})
        with self.server.lock:
            fault = self.server.faults.pop(0) if self.server.faults and path.startswith("/cdn/") else ""
            self.server.requests.append((name, self.headers.get("Range")))
        return self.send_file(file, fault)

    do_HEAD = do_GET

    def send_file(self, file: Path, fault: str) -> None:
        size = file.stat().st_size
        start, stop = 0, size
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        if fault.isdigit():
            return self.answer(int(fault), b"no")
        if asked and fault != "whole":
            start, stop = int(asked[1]), min(size, int(asked[2]) + 1)
            if start >= size:
                return self.answer(416, b"", {"Content-Range": f"bytes */{size}"})
        stop -= fault == "short"
        headers = {"ETag": f'"{file.name}"', "X-Repo-Commit": COMMIT}
        self.send_response(206 if asked and fault != "whole" else 200)
        if asked and fault != "whole":
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        if fault == "more":  # and how much is not said
            self.close_connection = True
        else:
            headers["Content-Length"] = str(stop - start)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return None
        self.send_body(file, start, stop, fault)

    def send_body(self, file: Path, start: int, stop: int, fault: str) -> None:
        if fault == "stall":
            time.sleep(1.5)
        end = {"drop": (start + stop) // 2, "more": file.stat().st_size}.get(fault, stop)
        try:
            with file.open("rb") as f:
                f.seek(start)
                while start < end:
                    piece = f.read(min(1 if fault == "trickle" else PIECE, end - start))
                    with self.server.lock:  # before the client has the last of it and the test asks
                        self.server.sent[file.name] += len(piece)
                    self.wfile.write(piece)
                    self.wfile.flush()
                    start += len(piece)
                    time.sleep(0.05 if fault == "trickle" else 0)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client has had enough
        self.close_connection |= fault == "drop"

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Nothing."""


def point_client_at(server: RangeHub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's client in this process takes `server` for the hub."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    constants = "huggingface_hub.constants"
    monkeypatch.setattr(f"{constants}.ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(f"{constants}.HF_HUB_CACHE", str(cache))


@contextmanager
def serving(root: Path) -> Iterator[RangeHub]:
    """Yields the hub while it answers."""
    hub = RangeHub(root)
    thread = threading.Thread(target=hub.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


@contextmanager
def served_repository(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RangeHub]:
    """Yields the hub while the hub's client is pointed to it, with an empty `cache`."""
    with serving(root) as server:
        point_client_at(server, cache, monkeypatch)
        yield server
