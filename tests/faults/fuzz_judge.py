"""What became of a mutant: by what it said, how it ended, and which files are there afterwards."""

import json
import os
import re
import signal
import stat
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from tests.faults.fuzz_targets import MANIFEST, Run, Target

HOME = "a/b/c/work"
"""The command's working folder in a mutant's box: `../../x` still lies within the box."""
GOOD = ("ok", "one line")
BAD = ("noise", "traceback", "hang", "memory", "outside", "lost", "kept damage", "crash")
NO_MEMORY = re.compile(
    r"MemoryError|not enough memory|can't allocate memory|Cannot allocate memory|out of memory", re.I
)
REFUSALS = (1, 2, 3)


def snapshot(place: Path) -> dict[str, str]:
    """Relative name -> what lies there, down to the digest of its bytes."""
    found = {}
    for folder, folders, files in os.walk(place):
        for name in (*folders, *files):
            path = Path(folder, name)
            found[path.relative_to(place).as_posix()] = _content(path)
    return found


def _content(path: Path) -> str:
    kind = path.lstat().st_mode
    if stat.S_ISLNK(kind):
        return f"link to {os.readlink(path)}" + (f" {_content(path.resolve())}" if path.is_file() else "")
    if stat.S_ISREG(kind):
        return sha256(path.read_bytes()).hexdigest()
    return "folder" if stat.S_ISDIR(kind) else "other"


def inside(folder: Path) -> dict[str, str]:
    """The box of a mutant, but for the folder of temporary files; names are relative to the working folder."""
    found = snapshot(folder / "box")
    return {os.path.relpath(name, HOME): what for name, what in found.items() if not name.startswith("tmp")}


@dataclass(frozen=True)
class Ran:
    """How a mutant went."""

    run: Run
    said: str
    """What was damaged, in words."""
    before: dict[str, str]
    code: int
    """Exit code; 99 for a traceback; negative: the signal that ended it."""
    error: str
    at: str
    trace: str
    stderr: str
    hung: bool
    memory: int

    @classmethod
    def read(cls, folder: Path, target: Target, status: int, usage: Any, *, hung: bool) -> "Ran":
        """Of what the process left in its folder."""
        ended = {"code": os.waitstatus_to_exitcode(status), "error": "", "at": "", "trace": ""}
        if (folder / "mutator.log").exists():
            raise RuntimeError(f"{folder.name}: the mutator failed:\n{(folder / 'mutator.log').read_text()}")
        if (folder / "ended.json").exists():
            ended = json.loads((folder / "ended.json").read_text())
        number, said, before = json.loads((folder / "before.json").read_text())
        stderr = (folder / "stderr").read_text(errors="replace") if (folder / "stderr").exists() else ""
        return cls(target.runs[number], said, before, stderr=stderr, hung=hung, memory=usage.ru_maxrss, **ended)


@dataclass(frozen=True)
class Judgement:
    """The verdict; for a bad one its kind, which many mutants may share, and what there is to know."""

    verdict: str
    kind: str = ""
    detail: str = ""


def judge(folder: Path, pristine: dict[str, str], ran: Ran) -> Judgement:
    """The worst of what can be said of a mutant."""
    by_files = _judge_files(ran, pristine, inside(folder))
    if by_files is not None:
        return by_files
    if ran.hung or ran.code in (-signal.SIGXCPU, -signal.SIGKILL):
        return Judgement("hang", "stands still" if ran.hung else "works too long", ran.stderr[-500:])
    if NO_MEMORY.search(ran.stderr + ran.error):
        return Judgement("memory", f"{ran.at} {_shape(ran.stderr)}", ran.stderr[-500:])
    if ran.code < 0:
        return Judgement("crash", signal.Signals(-ran.code).name, ran.stderr[-500:])
    if ran.code in (0, 3):
        if "Traceback (most recent" in ran.stderr:
            return Judgement("traceback", "though it ended well", ran.stderr[-500:])
        return Judgement("ok")
    if ran.code not in REFUSALS:
        return Judgement("traceback", f"{ran.error} {ran.at}", _last_line(ran.stderr))
    if ran.stderr.count("\n") != 1 or not ran.stderr.startswith("error: ") or any(
        ord(c) < 32 for c in ran.stderr.rstrip("\n")
    ):  # fmt: skip
        return Judgement("noise", _shape(ran.stderr), ran.at)
    return Judgement("one line")


def _judge_files(ran: Ran, pristine: dict[str, str], after: dict[str, str]) -> Judgement | None:
    done = ran.code in (0, 3)
    for name in sorted(ran.before.keys() | after.keys()):
        old, new = ran.before.get(name), after.get(name)
        ours = any(_within(name, out) or _within(out, name) or name == _manifest(out) for out in ran.run.outs)
        if old is None and not ours:
            return Judgement("outside", f"{_shape(name)} {ran.at}", name)
        if old is None and not done and ".partial" in name and ran.code in REFUSALS:
            return Judgement("outside", f"a partial folder is left {ran.at}", name)
        if old is None or new == old or (done and ours and not ran.run.adds_only):
            continue
        if new is not None and new == pristine.get(name):
            continue  # what was damaged is whole again
        return Judgement(
            "lost", f"{_shape(name)} {'gone' if new is None else 'changed'} {ran.at}", f"{name}: {ran.stderr}"
        )
    if done and ran.run.same:
        for name in sorted(pristine):
            of_result = name[-4:] != ".png" and any(_within(name, out) for out in ran.run.same)
            if of_result and pristine[name] not in after.get(name, ""):  # a link may hold the same bytes
                return Judgement("kept damage", _shape(name), name)
    return None


def _within(name: str, folder: str) -> bool:
    return folder == "." or name == folder or name.startswith(f"{folder}/")


def _manifest(out: str) -> str:
    return Path(out).with_name(MANIFEST).as_posix() if Path(out).name else MANIFEST


def _shape(text: str) -> str:
    """The first lines without what differs between mutants of a kind."""
    lines = [line for line in text.splitlines() if line.strip()][:2]
    return re.sub(r"\d+", "N", re.sub(r"'[^']*'|\"[^\"]*\"", "'...'", " / ".join(lines)))[:160]


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1][:300]
