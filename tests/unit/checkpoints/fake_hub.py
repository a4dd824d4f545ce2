"""A hub on loopback for a child process: one public repository in every format, one gated, one private."""

import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "lab/tiny"


class Hub(BaseHTTPRequestHandler):
    """Serves the files of `root` as repository lab/tiny at COMMIT, on branch main."""

    root: Path
    served: list[str]

    def do_GET(self):
        path = self.path.partition("?")[0].replace("%2F", "/")
        if path.startswith("/api/models/lab/gated"):
            return self.refuse(403, "GatedRepo")
        if not (path.startswith((f"/api/models/{REPO}", f"/{REPO}/resolve/"))):
            return self.refuse(401, "RepoNotFound")
        if "/no-such-branch" in path:
            return self.refuse(404, "RevisionNotFound")
        files = sorted(p.name for p in self.root.iterdir())
        if "/tree/" in path:
            sizes = {name: (self.root / name).stat().st_size for name in files}
            entries = [{"type": "file", "path": n, "size": sizes[n], "oid": f"{n:0<40}"} for n in files]
            return self.answer(json.dumps(entries).encode())
        if path.startswith("/api/"):
            siblings = [{"rfilename": name} for name in files]
            return self.answer(json.dumps({"id": REPO, "sha": COMMIT, "siblings": siblings}).encode())
        name = path.rpartition("/")[2]
        if self.command == "GET":
            self.served.append(name)
        return self.answer((self.root / name).read_bytes(), {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT})

    do_HEAD = do_GET

    def answer(self, body, headers=None):
        self.send_response(200)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def refuse(self, status, code):
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args):
        """Nothing: the child's output is read by the test."""


def said(reference):
    """The one line that `resolve_reference` refuses with."""
    from subspacelab.checkpoints import resolve_reference

    try:
        return f"resolved to {resolve_reference(reference)}"
    except ValueError as e:
        return str(e)


def main(root: Path) -> None:
    """Prints as JSON what came of resolving: with the hub there, then with it gone."""
    from subspacelab.checkpoints import resolve_reference

    Hub.root, Hub.served = root, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"  # read when the hub's client is imported
    threading.Thread(target=server.serve_forever, daemon=True).start()
    online = resolve_reference(f"{REPO}@main")
    refused = {name: said(name) for name in ("lab/gated", "lab/private", f"{REPO}@no-such-branch")}
    server.shutdown()
    server.server_close()
    print(
        json.dumps(
            {
                "revision": online.revision,
                "files": sorted(p.name for p in online.folder.iterdir()),
                "served": sorted(set(Hub.served)),
                "refused": refused,
                "unreachable": said("lab/other"),
                "cached": [str(resolve_reference(name).folder) for name in (REPO, f"{REPO}@{COMMIT}")],
                "folder": str(online.folder),
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
