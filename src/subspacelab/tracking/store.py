"""The store of runs: one for a repository and all places in which DVC runs its experiments."""

import fcntl
import http.client
import logging
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from subspacelab.core.errors import printable

REMEDY = "start it, unset MLFLOW_TRACKING_URI, or run without tracking (TRACKING=off or --no-track)"


def main_root() -> Path:
    """The main repository, also from a temporary copy in which DVC runs an experiment; else the working directory."""
    root = os.environ.get("DVC_ROOT")
    if root and (Path(root) / ".dvc").is_dir():
        return Path(root).resolve()
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / ".git").exists()), here)


def store_uri() -> str:
    """MLFLOW_TRACKING_URI, with a relative local path made absolute at the main root; else mlruns/mlflow.db there.

    The address of a server has no user and password: see `take_credentials`.
    """
    take_credentials()
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return f"sqlite:///{main_root() / 'mlruns' / 'mlflow.db'}"
    if uri.startswith("sqlite:///") and not uri.startswith("sqlite:////"):
        return f"sqlite:///{main_root() / uri.removeprefix('sqlite:///')}"
    if uri.startswith("file:") and not uri.startswith("file:/"):
        return (main_root() / uri.removeprefix("file:")).as_uri()
    return uri if ":" in uri else (main_root() / uri).as_uri()


def take_credentials() -> None:
    """Moves user and password from a server's address to MLflow's own variables, for this process.

    MLflow would print and record the address. A user without a password is a token.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not is_server(uri):
        return
    parts = urlsplit(uri)
    secret, _, place = parts.netloc.rpartition("@")
    try:
        _ = urlsplit(f"//{place}").port
    except ValueError:
        signs = "in a user or password write / as %2F, ? as %3F, # as %23"
        raise ValueError(f"MLFLOW_TRACKING_URI: its port is no number; {signs}") from None
    if not secret:
        return
    user, _, password = map(unquote, secret.partition(":"))
    if user and password:
        os.environ |= {"MLFLOW_TRACKING_USERNAME": user, "MLFLOW_TRACKING_PASSWORD": password}
    else:
        os.environ["MLFLOW_TRACKING_TOKEN"] = user or password
    os.environ["MLFLOW_TRACKING_URI"] = parts._replace(netloc=place).geturl()


def without_secrets(text: str) -> str:
    """The text as one printable line, with stars in place of the store's user, password and token."""
    name = urlsplit(os.environ.get("MLFLOW_TRACKING_URI", "")).netloc.rpartition("@")[0].split(":", 1)
    given = [os.environ.get(f"MLFLOW_TRACKING_{key}", "") for key in ("USERNAME", "PASSWORD", "TOKEN")]
    line = printable(text)
    for secret in filter(None, {*name, *map(unquote, name), *given}):
        line = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "***", line)
    return line


def database_file(uri: str) -> Path | None:
    """The file of a SQLite store; None for any other store."""
    return Path(uri.removeprefix("sqlite:///").partition("?")[0]) if uri.startswith("sqlite:////") else None


def is_server(uri: str) -> bool:
    """Whether the store is reached through HTTP, so that the server chooses where artifacts are stored."""
    return uri.startswith(("http://", "https://"))


def store_folder(uri: str) -> Path:
    """Folder of the lock and, without a server, of the artifacts."""
    database = database_file(uri)
    return database.parent if database else main_root() / "mlruns"


@contextmanager
def store_lock(uri: str) -> Iterator[None]:
    """Locks the store: several processes that create one SQLite store at once would break it.

    A folder created here is ignored by git, so that a tracked run leaves `git status` clean.
    """
    folder = store_folder(uri)
    if not folder.exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".gitignore").write_text("*\n", encoding="utf-8")
    with (folder / ".lock").open("a", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def require_server(uri: str, seconds: float = 5.0) -> None:
    """ValueError, in one line, if nothing answers at an http(s) `uri` within `seconds`; needs no MLflow."""
    try:
        urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=seconds).close()
    except urllib.error.HTTPError as e:
        # 401 or 404 come from a living server behind a proxy; 502 to 504 from a proxy before a dead one.
        if e.code in (502, 503, 504):
            raise ValueError(f"{shown(uri)} answers {e.code}; {REMEDY}") from e
    except (OSError, http.client.HTTPException) as e:
        reason = getattr(e, "reason", e)
        raise ValueError(f"{shown(uri)} does not answer ({without_secrets(str(reason))}); {REMEDY}") from e


def shown(uri: str) -> str:
    """The store in words for the user, without the user, password or query of its URI."""
    scheme, _, rest = uri.partition("://")
    place = re.split(r"[?#]", rest if rest.startswith("/") else rest.rpartition("@")[2])[0]
    return f"the MLflow {'server' if is_server(uri) else 'store'} {scheme}://{place}"


def set_mlflow_defaults() -> None:
    """Quiet, no telemetry, short timeouts on a dead server; MLflow reads these settings when it is imported."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # Of a database that fails it shows the traceback, and then raises what is told here in one line.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
