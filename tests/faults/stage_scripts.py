"""The smoke study in a folder of its own, whose doors are run, killed and run again."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from subspacelab.pipeline.stage import read_declaration

ROOT = Path(__file__).resolve().parents[2]
NEEDS = {
    "scenes": [],
    "checkpoint_base": [],
    "checkpoint_rl_stage1": ["checkpoint_base"],
    "decompose@base": ["checkpoint_base"],
    "cache_features": ["scenes", "checkpoint_base"],
    "train_lowrank@ResMLP": ["cache_features"],
    "train_lowrank@AdaLoRA": ["cache_features"],
    "corpus": [],
    "checkpoint_llm": ["corpus"],
    "build_adapter@lora_null_v2": ["checkpoint_llm"],
    "build_adapter@corda": ["checkpoint_llm"],
    "train_adapter@lora_null_v2": ["build_adapter@lora_null_v2"],
}
"""Stage -> those that must have run before it."""


@dataclass(frozen=True)
class Killed:
    """What a kill found."""

    in_work: bool
    """Whether the stage was still at work."""
    left: list[str]
    """Whole files that it left in its work folder."""


class StageScripts:
    """Runs the doors of the study in `folder`, one at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        _copy_project(folder)
        self._unbroken: dict[str, float] = {}
        self._log = (folder / "doors.log").open("w")
        self._server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("script_server.py"))],
            cwd=folder,
            env=os.environ | {"TRACKING": "off", "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def close(self) -> None:
        self._to.close()
        self._server.wait()
        self._log.close()

    def unbroken(self, stage: str) -> float:
        """Runs a stage and what it needs, once; returns the seconds for which it worked."""
        if stage not in self._unbroken:
            for needed in NEEDS[stage]:
                self.unbroken(needed)
            self._unbroken[stage] = self.run(stage)
        return self._unbroken[stage]

    def run(self, stage: str) -> float:
        """Runs a stage to its end, as DVC does: its outs are removed before; returns the seconds of its work."""
        begun = self._start(stage)
        status = self._answer()
        seconds = time.monotonic() - begun
        assert status == 0, f"{stage} ended with status {status}:\n{self.printed()}"
        return seconds

    def kill(self, stage: str, moment: float) -> Killed:
        """Starts a stage and kills it `moment` seconds after it began to work."""
        begun = self._start(stage)
        time.sleep(max(0.0, begun + moment - time.monotonic()))
        with suppress(ProcessLookupError):  # it was quicker
            os.killpg(self._pid, signal.SIGKILL)
        in_work = self._answer() == signal.SIGKILL
        files = (path for path in self.work_folders(stage) for path in path.rglob("*") if path.is_file())
        left = [path.name for path in files if not any(part.endswith(".partial") for part in path.parts)]
        return Killed(in_work, sorted(left))

    def work_folders(self, stage: str) -> list[Path]:
        """What lies in the stage's place for unfinished work, beside its locks."""
        return [path for path in (self.folder / ".cache/stages" / stage).glob("*") if path.suffix != ".lock"]

    def tree(self) -> dict[str, str]:
        """Every file of the workspace and the digest of its content; a folder has none."""
        found = {}
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder)
            if name.parts[0] not in (".cache", "doors.log") and "__pycache__" not in name.parts:
                found[str(name)] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        return found

    def printed(self) -> str:
        return (self.folder / "doors.log").read_text()[-4000:]

    def _start(self, stage: str) -> float:
        """Starts a stage, waits until it has begun to work, and returns when that was."""
        name, _, item = stage.partition("@")
        for out in read_declaration(name, item or None, ROOT / "dvc.yaml").outs:
            path = self.folder / out
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        now = time.time()
        self._to.write(json.dumps([f"pipelines/{name}.py", *([item] if item else [])]) + "\n")
        self._to.flush()
        self._pid = self._answer()
        while _lives(self._pid) and not self._has_begun(stage, now):
            time.sleep(0.001)
        return time.monotonic()

    def _has_begun(self, stage: str, since: float) -> bool:
        """Whether the stage has taken its lock, which is the first that it does: what came before was the import."""
        lock = self.folder / ".cache/stages" / stage / "workspace.lock"
        return lock.exists() and lock.stat().st_mtime > since

    def _answer(self) -> int:
        assert self._server.stdout is not None
        line = self._server.stdout.readline()
        assert line, f"the server of doors has ended:\n{self.printed()}"
        return int(line)

    @property
    def _to(self) -> IO[str]:
        assert self._server.stdin is not None
        return self._server.stdin


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _copy_project(folder: Path) -> None:
    for name in ("src", "pipelines"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(ROOT / "dvc.yaml", folder)
    params = (ROOT / "params.yaml").read_text()
    (folder / "params.yaml").write_text(params.replace("study: demo", "study: smoke"))
    (folder / ".git").mkdir()  # the root at which work in progress is kept
