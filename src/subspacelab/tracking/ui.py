"""The MLflow UI over the store that runs are recorded in."""

import os
import sys

from subspacelab.tracking.runs import open_store, usable_store
from subspacelab.tracking.store import database_file, is_server, shown, store_folder


def ui_command(host: str, port: int) -> tuple[list[str], dict[str, str]]:
    """The command and the environment of the MLflow UI on `host:port`; creates the store when there is none yet.

    Raises ValueError when runs go to a server, which has a UI of its own.
    """
    uri = usable_store()
    if is_server(uri):
        raise ValueError(f"runs are recorded on {shown(uri)}: open that address in a browser")
    database = database_file(uri)
    if database and not database.exists():
        with open_store(uri, ["pipeline"]):
            pass
    where = ["--artifacts-destination", (store_folder(uri) / "artifacts").as_uri()]
    command = [sys.executable, "-m", "mlflow", "server", *where, "--host", host, "--port", str(port)]
    # Without job execution the server is 2 processes instead of about 10, of 240 MB each.
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    # Not as a word of the command, which `ps` shows to everybody: the address of a database may hold its password.
    return [*command, "--workers", "1"], {**os.environ, **quiet, "MLFLOW_BACKEND_STORE_URI": uri}
