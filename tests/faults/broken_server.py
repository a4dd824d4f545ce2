"""A server between a run and MLflow's, which can be told to answer badly."""

import base64
import http.client
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

AUTHORIZATION = f"Basic {base64.b64encode(b'me:s3cret@/').decode()}"
LATE = 4.0  # seconds; the client waits 2


class BrokenServer(ThreadingHTTPServer):
    """Hands requests on to the server at `port` as `mode` says."""

    daemon_threads = True

    def __init__(self, port: int | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.port = port
        self.mode = "pass"
        """pass; auth: passes those of `AUTHORIZATION`; 500: answers so; late: hands on, answers when the client
        has gone; silent: never answers."""

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: BrokenServer

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        mode = self.server.mode
        if mode == "silent":
            time.sleep(60)
            return
        if mode == "auth" and self.headers.get("Authorization") != AUTHORIZATION:
            self._send(401, b"no")
            return
        if mode == "500":
            self._send(500, b"no")
            return
        there = http.client.HTTPConnection("127.0.0.1", self.server.port or 0, timeout=30)
        there.request(self.command, self.path, body, {k: v for k, v in self.headers.items() if k != "Connection"})
        answer = there.getresponse()
        content = answer.read()
        if mode == "late":
            time.sleep(LATE)
        with suppress(OSError):  # the client has gone
            self._send(answer.status, content, answer.getheader("Content-Type") or "application/json")

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer

    def _send(self, status: int, content: bytes, kind: str = "text/plain") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@contextmanager
def serving(port: int | None = None) -> Iterator[BrokenServer]:
    """A running one."""
    with BrokenServer(port) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
