"""Runs commands where no file may grow beyond a size, then again without that limit; prints what came of it as JSON.

A process of its own: the limit is the whole process's, and would hit pytest's own files. Arguments: the workshop, a
folder to work in.
"""

import io
import json
import os
import resource
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from tests.faults.workshop import COMMANDS, run, snapshot

OUTPUTS = {
    "decompose": ["svd/out"],
    "compare-rotations": ["rotations"],
    "cache": ["cached"],
    "train-lowrank": ["results/Sketch"],
    "compare-lowrank": ["results/comparison"],
    "visualize": ["results/pictures"],
    "build": ["adapter"],
    "train-adapter": ["trained"],
    "verify": ["stats/measured.json"],
    "compare-stats": ["stats/compared"],
    "norms": ["norms", "norms.json"],
}
"""What each command writes."""
LIMITS = {
    "decompose": (1000, 5000),  # factors, then index.json
    "compare-rotations": (1000, 5000, 20_000),  # tables, metrics.json, a picture
    "cache": (1000, 5000),  # features, pictures
    "train-lowrank": (1000, 20_000),  # weights, a picture
    "compare-lowrank": (100, 1000, 5000),  # a table, metrics.json, a picture
    "visualize": (1000,),
    "build": (1000,),
    "train-adapter": (100, 1000, 20_000),  # job.json, the adapter's checkpoint, the optimizer's
    "verify": (1000,),
    "compare-stats": (1000, 20_000),  # a table, a picture
    "norms": (1000,),
}
"""Bytes at which each command stops, at a different file each time."""


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes: for whoever writes as good as a full disk.

    Nothing that is imported is compiled to disk meanwhile: CPython 3.11 takes a short write of a .pyc for a whole one,
    and every later process would fail on it ("marshal data too short").
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    compiles = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        sys.dont_write_bytecode = compiles


def said_by(words: str) -> tuple[int, str]:
    """Exit code and standard error of a command."""
    with redirect_stderr(io.StringIO()) as err, redirect_stdout(io.StringIO()):
        code = run(words)
    return code, err.getvalue()


def fill_and_make_room(workshop: Path, place: Path, command: str, limit: int) -> dict[str, Any]:
    """The command without room, and with it, where it has written nothing yet."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(workshop, place)
    os.chdir(place)
    for name in OUTPUTS[command]:
        shutil.rmtree(name) if Path(name).is_dir() else Path(name).unlink()
    others = snapshot(place)
    with file_size_limit(limit):
        code, err = said_by(COMMANDS[command])
    after, good = snapshot(place), snapshot(workshop)
    half = [name for name in after if ".partial" in name or (name in good and after[name] not in (None, good[name]))]
    changed = [name for name in others if others[name] != after.get(name)]
    again, complaint = said_by(COMMANDS[command])
    end = snapshot(place)
    names = [name for name in good.keys() | end.keys() if name.startswith(tuple(OUTPUTS[command]))]
    different = sorted(name for name in names if good.get(name, b"none") != end.get(name, b"none"))
    found = {"code": code, "err": err, "half": half, "changed": changed}
    return found | {"again": again, "complaint": complaint, "different": different}


if __name__ == "__main__":
    workshop, place = Path(sys.argv[1]), Path(sys.argv[2])
    found = {f"{c}, {n}": fill_and_make_room(workshop, place, c, n) for c, limits in LIMITS.items() for n in limits}
    print(json.dumps(found))
