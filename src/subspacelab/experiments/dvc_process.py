"""DVC as a process: the only way in which this project speaks to it."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def require_dvc() -> None:
    """Raises ValueError in one line when DVC is not installed, or when this is not the project's root."""
    if find_spec("dvc") is None:
        raise ValueError("dvc is not installed; pip install 'subspacelab[pipeline]'")
    if not Path("dvc.yaml").is_file():
        raise ValueError("dvc.yaml is missing; run from the project's root")


def dvc_command(*words: str) -> list[str]:
    """The command line of `dvc <words>` with this Python."""
    return [sys.executable, "-m", "dvc", *words]


def dvc_environment() -> dict[str, str]:
    """The environment with this Python's folder first on the path: stages call `python`."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**os.environ, "PATH": path}


def dvc_run(*words: str) -> int:
    """Runs `dvc <words>` and returns its exit code; what it prints goes to standard error.

    A Ctrl-C reaches DVC too: it is given the time to end its stage and to clear up.
    """
    with subprocess.Popen(dvc_command(*words), env=dvc_environment(), stdout=sys.stderr) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.wait()
            raise


def dvc_json(*words: str) -> Any:
    """What `dvc <words> --json` prints; raises ValueError with the last line of what DVC complains about."""
    done = subprocess.run(dvc_command(*words, "--json"), env=dvc_environment(), capture_output=True, text=True)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        raise ValueError(f"dvc {' '.join(words)} failed: {said[-1].removeprefix('ERROR: ')}")
    return json.loads(done.stdout)
