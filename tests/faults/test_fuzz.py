"""The fuzzer itself: equal seeds give equal mutants, its judge sees each kind of harm, and a few mutants run well."""

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.faults import fuzz_mutators as m
from tests.faults.fuzz_judge import HOME, Ran, inside, judge
from tests.faults.fuzz_targets import TARGETS, Run

ROOT = Path(__file__).resolve().parents[2]


def write_json_file(path: Path) -> None:
    path.write_text('{"a": {"b": [1, 2.5, null, "text"], "c": true}, "d": "e", "f": 7}')


def write_tensor_file(path: Path) -> None:
    save_file({"a.weight": torch.arange(12.0).view(3, 4), "b": torch.ones(4)}, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("mutator", "write"),
    [(m.any_json, write_json_file), (m.any_safetensors, write_tensor_file)],
    ids=["json", "tensors"],
)
def test_one_seed_is_one_mutant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mutator: m.Mutator, write: Callable[[Path], None]
) -> None:
    made = set()
    for seed in range(20):
        found = []
        for place in (tmp_path / f"{seed}-a", tmp_path / f"{seed}-b"):
            place.mkdir()
            monkeypatch.chdir(place)
            write(Path("file"))
            said = m.in_files((1.0, "file", mutator))(random.Random(seed))
            found.append((said, Path("file").read_bytes() if is_regular(Path("file")) else b""))
        assert found[0] == found[1]
        made.add(found[0])
    assert len(made) > 15


def is_regular(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


@pytest.fixture
def box(tmp_path: Path) -> Path:
    """A mutant's folder: an input, and an earlier result."""
    home = tmp_path / "box" / HOME
    (home / "out").mkdir(parents=True)
    (home / "input").write_text("a")
    (home / "out" / "result").write_text("b")
    return tmp_path


def verdict(box: Path, code: int, stderr: str = "", before: dict[str, str] | None = None, **of_run: object) -> str:
    run = Run("a command", ("out",), **of_run)  # type: ignore[arg-type]
    given = inside(box) if before is None else before
    ran = Ran(run, "damaged", given, code, "Error", "x.py:1", "", stderr, hung=False, memory=0)
    return judge(box, {"out/result": given.get("out/result", "")}, ran).verdict


LINE = "error: x: wrong; mend it\n"


@pytest.mark.parametrize(
    ("code", "stderr", "expected"),
    [
        (0, "", "ok"),
        (0, "Traceback (most recent call last)", "traceback"),
        (1, LINE, "one line"),
        (2, LINE, "one line"),
        (1, f"a library says\n{LINE}", "noise"),
        (1, "error: \x1b[31mred\n", "noise"),
        (1, "", "noise"),
        (70, "error: unexpected KeyError\n", "traceback"),
        (99, "Traceback (most recent call last)\n", "traceback"),
        (1, "error: MemoryError\n", "memory"),
        (-24, "", "hang"),
        (-11, "", "crash"),
    ],
)
def test_the_judge_by_what_is_said(box: Path, code: int, stderr: str, expected: str) -> None:
    assert verdict(box, code, stderr) == expected


def test_the_judge_by_what_is_left(box: Path) -> None:
    home, before = box / "box" / HOME, inside(box)
    (home / "out" / "result").write_text("c")
    assert verdict(box, 0, before=before) == "ok"
    assert verdict(box, 1, LINE, before=before) == "lost"
    assert verdict(box, 0, before=before, adds_only=True) == "lost"
    assert verdict(box, 0, before=before, same=("out",)) == "kept damage"
    (home / "out" / "result").write_text("b")
    (home / "input").write_text("changed")
    assert verdict(box, 0, before=before) == "lost"
    (home / "input").write_text("a")
    (home.parent / "elsewhere").touch()
    assert verdict(box, 0, before=before) == "outside"
    (home.parent / "elsewhere").unlink()
    assert verdict(box, 1, LINE, before=before) == "one line"


def test_every_run_has_what_it_needs() -> None:
    for target in TARGETS.values():
        assert target.runs
        assert all(run.outs for run in target.runs), target.name


@pytest.mark.slow
def test_a_few_mutants_of_cheap_targets_are_harmless() -> None:
    line = [sys.executable, str(ROOT / "tests/faults/fuzz.py"), "--mutants", "8", "--target", "stats", "safetensors"]
    done = subprocess.run(line, env=os.environ | {"PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| stats | " in done.stdout
