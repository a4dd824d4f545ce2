"""DVC as a process; nothing else in this project calls DVC."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def require_dvc() -> None:
    """ValueError, in one line, if DVC is not installed or the working directory is not the project's root."""
    if find_spec("dvc") is None:
        raise ValueError("dvc is not installed; pip install '.[pipeline]' in the clone")
    if not Path("dvc.yaml").is_file():
        raise ValueError("dvc.yaml is missing; run from the project's root")


def require_usable_path(folder: Path) -> None:
    """ValueError, before any work, if DVC or git cannot make an experiment in `folder`."""
    path = str(folder)
    wrong = [sign for sign in (":", "$", "%(") if sign in path] or [c for c in path if "\ud800" <= c <= "\udfff"]
    if wrong:
        raise ValueError(
            f"{path}: DVC cannot run an experiment in a folder with {wrong[0]!r} in its path;"
            " move the project to another, or use dvc repro"
        )


def dvc_command(*words: str) -> list[str]:
    """The command line of `dvc <words>` with this Python."""
    return [sys.executable, "-m", "subspacelab.pipeline.dvc", *words]


def dvc_environment() -> dict[str, str]:
    """The environment in UTF-8, with this Python's folder first on the path, because stages call `python`."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**os.environ, "PATH": path, "PYTHONUTF8": "1"}


def dvc_run(*words: str) -> int:
    """Runs `dvc <words>` and returns its exit code; its output goes to standard error.

    On Ctrl-C, which DVC receives too, it waits for DVC to end its stage and to clean up.
    """
    with subprocess.Popen(dvc_command(*words), env=dvc_environment(), stdout=sys.stderr) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.wait()
            raise


def dvc_json(*words: str) -> Any:
    """The output of `dvc <words> --json`; errors as `dvc_silent`."""
    return json.loads(dvc_silent(*words, "--json"))


def dvc_silent(*words: str) -> str:
    """The output of `dvc <words>`; ValueError with the last line of DVC's error message."""
    line = dvc_command(*words)
    done = subprocess.run(line, env=dvc_environment(), capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        raise ValueError(f"dvc {' '.join(words)} failed: {said[-1].removeprefix('ERROR: ')}")
    return done.stdout


def experiment_commit(name: str) -> str | None:
    """The commit of an experiment based on the last commit; None if there is no such experiment."""
    return _git("rev-parse", "--quiet", "--verify", _reference(name))


def restore_experiment(name: str, commit: str) -> None:
    """Restores an experiment of the last commit that DVC has removed."""
    _git("update-ref", _reference(name), commit)


def _reference(name: str) -> str:
    head = _git("rev-parse", "HEAD") or ""
    return f"refs/exps/{head[:2]}/{head[2:]}/{name}"


def _git(*words: str) -> str | None:
    done = subprocess.run(["git", *words], capture_output=True, encoding="utf-8", errors="replace")
    return done.stdout.strip() if done.returncode == 0 else None
