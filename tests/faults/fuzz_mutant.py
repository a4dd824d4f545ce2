"""One mutant: a forked process that damages its own copy of the files and then runs a command on it."""

import importlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from tests.faults.fuzz_judge import HOME, inside
from tests.faults.fuzz_targets import Run, Target

CPU_SECONDS = 20
MEMORY = 3 * 2**30
"""Bytes that a command on inputs of kilobytes may ask for, beyond what the libraries take."""
UNDRAWN = 0.85
"""Share of the mutants whose pictures are not drawn: drawing takes longer than all else."""


@dataclass
class Mutant:
    """A running one."""

    index: int
    folder: Path
    pid: int
    since: float
    worked: int = -1
    hung: bool = False

    def cpu_ticks(self) -> int:
        """Processor time so far."""
        with suppress(OSError):
            numbers = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
            return int(numbers[11]) + int(numbers[12])
        return self.worked

    def kill(self) -> None:
        """Ends it and whatever it has started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)


def start(folder: Path, part: Path, target: Target, seed: int, index: int) -> Mutant:
    """Forks the mutant `index` of a target; its files come to `folder`."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        _be_mutant(folder, part, target, random.Random(f"{seed}:{target.name}:{index}"))
    with suppress(OSError):
        os.setpgid(pid, pid)
    return Mutant(index, folder, pid, time.monotonic())


def _be_mutant(folder: Path, part: Path, target: Target, rng: random.Random) -> NoReturn:
    with suppress(OSError):
        os.setpgid(0, 0)
    try:
        home = folder / "box" / HOME
        home.parent.mkdir(parents=True)
        shutil.copytree(part, home, symlinks=True)
        for name in ("away", "tmp"):
            (folder / "box" / name).mkdir()
        os.chdir(home)
        os.environ |= {"FUZZ_AWAY": str(folder / "box/away"), "HOME": str(folder / "box/away")}
        os.environ["TMPDIR"] = str(folder / "box/tmp")
        number = rng.choices(range(len(target.runs)), [run.weight for run in target.runs])[0]
        run = target.runs[number]
        with warnings.catch_warnings(action="ignore"):
            said = (run.damage or target.damage)(rng)
        before = inside(folder)
        (folder / "before.json").write_text(json.dumps((number, said, before)))
    except BaseException:
        (folder / "mutator.log").write_text(traceback.format_exc())
        os._exit(98)
    if not target.draws and rng.random() < UNDRAWN:
        _leave_pictures_undrawn()
    sys.path[:] = [str(Path(entry).resolve()) for entry in sys.path]
    _limit()
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), number)
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    code, cause = _run(run)
    with suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    (folder / "ended.json").write_text(json.dumps(_where(cause) | {"code": code}))
    os._exit(0)


def _run(run: Run) -> tuple[int, BaseException | None]:
    """The exit code of the command, 99 for a traceback; and what ended it."""
    from subspacelab.cli import main

    try:
        for words in run.words.split(" ; "):
            try:
                run.door(words) if run.door else main(words.split())
            except SystemExit as e:
                if e.code not in (0, None):
                    raise
        return 0, None
    except SystemExit as e:
        return e.code if isinstance(e.code, int) else 97, e.__cause__ or e.__context__
    except BaseException as e:
        traceback.print_exc()
        return 99, e


def _where(e: BaseException | None) -> dict[str, Any]:
    """Type of an error, the innermost line of ours that it came through, and its traceback."""
    if e is None:
        return {"error": "", "at": "", "trace": ""}
    ours = [f for f in traceback.extract_tb(e.__traceback__) if "/subspacelab/" in f.filename]
    at = f"{ours[-1].filename.split('/subspacelab/')[-1]}:{ours[-1].lineno}" if ours else "?"
    return {"error": type(e).__name__, "at": at, "trace": "".join(traceback.format_exception(e))[-6000:]}


def _limit() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 2))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**30, 2**30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _leave_pictures_undrawn() -> None:
    figure: Any = importlib.import_module("matplotlib.figure").Figure
    figure.savefig = lambda self, path, **_: Path(path).write_bytes(b"a picture")
