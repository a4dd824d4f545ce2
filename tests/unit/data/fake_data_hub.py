"""A hub on loopback for a child process: data set lab/texts with one file, and others that it refuses."""

import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "lab/texts"
FILE = "part/train.jsonl"
CONTENT = b'{"text": "one"}\n{"text": "two"}\n'


class Hub(BaseHTTPRequestHandler):
    """Serves FILE of data set REPO at COMMIT."""

    served: list[str]

    def do_GET(self):
        path = self.path.partition("?")[0].replace("%2F", "/")
        if path.startswith("/api/datasets/lab/gated"):
            return self.answer(403, headers={"X-Error-Code": "GatedRepo"})
        if not path.startswith((f"/api/datasets/{REPO}", f"/datasets/{REPO}/")):
            return self.answer(401, headers={"X-Error-Code": "RepoNotFound"})
        if "/tree/" in path:
            return self.answer(200, json.dumps([listed(FILE), listed("README.md")]).encode())
        if path.startswith("/api/"):
            files = [{"rfilename": FILE}, {"rfilename": "README.md"}]
            return self.answer(200, json.dumps({"id": REPO, "sha": COMMIT, "siblings": files}).encode())
        if not path.endswith(FILE):
            return self.answer(404, headers={"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        self.served.append(self.command)
        return self.answer(200, CONTENT, {"ETag": '"file"', "X-Repo-Commit": COMMIT})

    do_HEAD = do_GET

    def answer(self, status, body=b"", headers=None):
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args):
        """Nothing: the child's output is read by the test."""


def listed(name):
    """An entry of the repository's tree."""
    return {"type": "file", "path": name, "size": len(CONTENT), "oid": "0" * 40}


def said(repo, name=FILE):
    """The content fetched, or the one line that refuses it."""
    from subspacelab.data.references import fetch_data_file

    try:
        return fetch_data_file(repo, name).read_text()
    except ValueError as e:
        return str(e)


def folder_said(repo):
    """The files of the data set with what matches `*.jsonl`, or the one line that refuses it."""
    from subspacelab.data.references import fetch_data_folder

    try:
        folder = fetch_data_folder(repo, ["*.jsonl"])
        return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    except ValueError as e:
        return str(e)


def main() -> None:
    """Prints as JSON what came of fetching: with the hub there, then with it gone."""
    Hub.served = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"  # read when the hub's client is imported
    threading.Thread(target=server.serve_forever, daemon=True).start()
    outcome = {
        "fetched": said(REPO),
        "again": said(REPO),
        "folder": folder_said(REPO),
        "served": Hub.served.count("GET"),
        "gated": said("lab/gated"),
        "private": said("lab/private"),
        "no_file": said(REPO, "part/test.jsonl"),
    }
    server.shutdown()
    server.server_close()
    outcome |= {"cached": said(REPO), "cached_folder": folder_said(REPO)}
    outcome |= {"unreachable": said("lab/other"), "unreachable_folder": folder_said("lab/other")}
    json.dump(outcome, sys.stdout)


if __name__ == "__main__":
    main()
