"""A temporary clone of this tree with its own DVC cache and its own MLflow store."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Clone:
    """A working copy in which DVC may run."""

    path: Path
    """Its root."""

    def run(self, *command: str, check: bool = True, **extra_environment: str) -> subprocess.CompletedProcess:
        """Runs a command there as a user would, tracking on; fails with what it printed."""
        done = subprocess.run(
            command, cwd=self.path, env=self.environment(**extra_environment), capture_output=True, text=True
        )
        assert not check or done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done

    def environment(self, **extra: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "MLFLOW_", "TRACKING"))}
        path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
        quiet = {"DVC_NO_ANALYTICS": "1", "MLFLOW_DISABLE_TELEMETRY": "true", "OMP_NUM_THREADS": "1"}
        return kept | quiet | {"PATH": path} | extra

    def runs(self) -> list:
        """Every run of the clone's own store."""
        from mlflow.tracking import MlflowClient

        client = MlflowClient(f"sqlite:///{self.path}/mlruns/mlflow.db")
        experiments = [e.experiment_id for e in client.search_experiments()]
        return list(client.search_runs(experiments, max_results=1000))

    def status(self) -> str:
        """What git sees as changed."""
        return self.run("git", "status", "--porcelain").stdout


def make_clone(path: Path) -> Clone:
    """Copies what git tracks or would track (so uncommitted work is tested too) and commits it."""
    listed = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True, text=True
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, path / name)
    clone = Clone(path)
    clone.run("git", "init", "-q")
    clone.run("git", "config", "user.name", "test")
    clone.run("git", "config", "user.email", "test@localhost")
    clone.run("git", "add", "-A")
    clone.run("git", "commit", "-qm", "clone")
    return clone


def make_smoke_clone_in(path: Path) -> Clone:
    """A clone that is set to the smoke study and has run nothing yet.

    On one thread: where another process has the second core, two that wait for each other take many times as long.
    """
    clone = make_clone(path)
    params = clone.path / "params.yaml"
    params.write_text(params.read_text().replace("study: demo", "study: smoke").replace("threads: 2", "threads: 1"))
    (clone.path / "dvc.lock").unlink(missing_ok=True)
    clone.run("git", "commit", "-qam", "the smoke study")
    return clone
