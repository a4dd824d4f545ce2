"""Two gloo processes without a launcher, as a cluster's own scheduler starts them."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def start_two(script: str, *arguments: str | Path, cwd: Path) -> list[subprocess.Popen[str]]:
    """Starts `script` as rank 0 and as rank 1; their standard streams are pipes."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        common |= {"MASTER_PORT": str(s.getsockname()[1]), "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    command, pipe = [sys.executable, "-c", script, *map(str, arguments)], subprocess.PIPE
    environments = [os.environ | common | {"RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    return [subprocess.Popen(command, env=e, stdout=pipe, stderr=pipe, text=True, cwd=cwd) for e in environments]
