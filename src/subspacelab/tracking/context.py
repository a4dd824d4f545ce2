"""The origin of a run (process, commit, stage, pipeline run), and the signals that end it."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil

TRIAL = "SUBSPACELAB_TRIAL"
"""Environment variable with the name of the search trial that a process belongs to."""
_AS_MODULE = (["-m", "dvc"], ["-m", "subspacelab.pipeline.dvc"])


@dataclass(frozen=True)
class StageContext:
    """A stage's place in a pipeline run, from the environment that DVC sets."""

    stage: str
    """Name with the matrix item, such as `decompose@base`, without the path that DVC adds."""
    mode: str | None
    """`repro`, `exp`, `temp` or `queue`; None if the script was run by hand."""
    exp_name: str | None
    """The experiment's name, for `dvc exp apply`."""
    baseline: str | None
    """The commit the experiment started from."""
    pipeline_id: str
    """The same for all stages of one pipeline run."""
    owner: str
    """Pid and start time of the outermost DVC process, or of this process if run by hand."""

    def tags(self) -> dict[str, str]:
        """The tags that lead from the tracked run back to DVC."""
        tags = {"dvc.stage": self.stage}
        if self.mode:
            tags["dvc.mode"] = self.mode
        return tags | self.experiment_tags()

    def experiment_tags(self) -> dict[str, str]:
        """Tags with the experiment's name and the command that restores it; empty outside an experiment."""
        if not self.exp_name:
            return {}
        return {
            "dvc.exp.name": self.exp_name,
            "dvc.baseline_rev": self.baseline or "",
            "dvc.apply": f"dvc exp apply {self.exp_name}",
        }


def stage_context(stage: str) -> StageContext:
    """Reads the environment that DVC sets for a stage's command; `stage` is the name if there is none."""
    exp_name, baseline = os.environ.get("DVC_EXP_NAME"), os.environ.get("DVC_EXP_BASELINE_REV")
    name = os.environ.get("DVC_STAGE", stage).rpartition(":")[2]
    kind, owner = _owner()
    pipeline_id = f"exp:{exp_name}@{(baseline or '')[:8]}" if exp_name else f"{kind}:{owner}"
    return StageContext(name, _mode(exp_name), exp_name, baseline, pipeline_id, owner)


def _mode(exp_name: str | None) -> str | None:
    if "DVC_STAGE" not in os.environ:
        return None
    here = Path.cwd().as_posix()
    if "/.dvc/tmp/exps/standalone/" in here:
        return "temp"
    if "/.dvc/tmp/exps/" in here:
        return "queue"
    return "exp" if exp_name else "repro"


def _owner() -> tuple[str, str]:
    dvc = [process for process in psutil.Process().parents() if _is_dvc(process)]
    kind, process = ("repro", dvc[-1]) if dvc else ("hand", psutil.Process())
    return kind, f"{process.pid}-{process.create_time():.2f}"


def _is_dvc(process: psutil.Process) -> bool:
    try:
        words = process.cmdline()[:3]
    except psutil.Error:
        return False
    return any(Path(word).name in {"dvc", "dvc.exe"} for word in words) or words[1:] in _AS_MODULE


def process_tags() -> dict[str, str]:
    """Host, pid and its start time (for the reaper), the program, the user."""
    tags = {
        "host": socket.gethostname(),
        "pid": str(os.getpid()),
        "pid.start": f"{psutil.Process().create_time():.2f}",
        "mlflow.source.name": Path(sys.argv[0]).name or "python",
    }
    user = os.environ.get("USER") or os.environ.get("LOGNAME")
    named = {"mlflow.user": user, "tune.trial": os.environ.get(TRIAL)}
    return tags | {key: value for key, value in named.items() if value}


def is_alive(tags: Mapping[str, str]) -> bool:
    """Whether the process of this host with these `process_tags` is still running; True for tags of other origin."""
    pid, start = tags.get("pid", ""), tags.get("pid.start", "")
    if not pid.isdecimal() or not re.fullmatch(r"\d+(\.\d+)?", start):
        return True  # another program's tags
    try:
        process = psutil.Process(int(pid))
        # Start times are boot time plus ticks; a stepped clock moves them, a reused pid moves them further.
        return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - float(start)) < 2.0
    except psutil.NoSuchProcess:
        return False


def git_tags() -> dict[str, str]:
    """The commit of the working directory, and whether tracked files differ from it; empty outside a repository."""
    try:
        commit = _git("rev-parse", "HEAD")
        dirty = _git("status", "--porcelain", "--untracked-files=no") != ""
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"git.commit": commit, "git.dirty": str(dirty).lower(), "mlflow.source.git.commit": commit}


def _git(*words: str) -> str:
    done = subprocess.run(
        ["git", *words], capture_output=True, encoding="utf-8", errors="replace", check=True, timeout=30
    )
    return done.stdout.strip()


_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


class Terminated(SystemExit):
    """The process was asked to end; its exit code is 128 + the signal's number, as in a shell."""


@contextmanager
def signals_as_exceptions() -> Iterator[None]:
    """Within the block, the first SIGTERM or SIGHUP raises Terminated; further ones wait for the clean-up."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    owner, raised = os.getpid(), False

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal raised
        if os.getpid() != owner:  # a forked worker: not its run
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif not raised:
            raised = True
            raise Terminated(128 + number)

    # What is ignored stays ignored: nohup sets SIGHUP so.
    before = {s: signal.getsignal(s) for s in _SIGNALS if signal.getsignal(s) is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def status_of(error: BaseException) -> str:
    """The status of a run that ended with `error`: KILLED from outside, FINISHED by `sys.exit(0)`, else FAILED."""
    if isinstance(error, (KeyboardInterrupt, Terminated)):
        return "KILLED"
    return "FINISHED" if isinstance(error, SystemExit) and error.code in (None, 0) else "FAILED"
