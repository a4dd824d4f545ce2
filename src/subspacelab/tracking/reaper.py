"""Runs whose process was killed without a word stay RUNNING in the store; the next start on the host ends them."""

import re
import socket
from typing import Any

import psutil


def reap_dead_runs(client: Any) -> list[str]:
    """Sets RUNNING runs of this host to KILLED when their process is gone; returns their ids.

    `client` is an `MlflowClient`. Runs without the tags `host`, `pid`, `pid.start` are someone else's and stay.
    """
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    mine = f"attributes.status = 'RUNNING' and tags.host = '{socket.gethostname()}'"
    dead = [
        run.info.run_id
        for run in client.search_runs(experiments, filter_string=mine)
        if not _alive(run.data.tags.get("pid", ""), run.data.tags.get("pid.start", ""))
    ]
    for run_id in dead:
        client.set_terminated(run_id, "KILLED")
    return dead


def _alive(pid: str, start: str) -> bool:
    if not pid.isdecimal() or not re.fullmatch(r"\d+(\.\d+)?", start):
        return True  # another program's tags
    try:
        process = psutil.Process(int(pid))
        # Start times are boot time plus ticks; a stepped clock moves them, a reused pid moves them further.
        return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - float(start)) < 2.0
    except psutil.NoSuchProcess:
        return False
