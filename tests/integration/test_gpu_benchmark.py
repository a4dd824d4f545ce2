"""benchmarks/gpu.py: every step runs on toys, and none that fails, hangs or dies keeps the others from running."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from subspacelab.core.files import read_json

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu"] = module  # where its dataclasses look for themselves
    spec.loader.exec_module(module)
    return module


def test_every_step_succeeds_on_toys(gpu: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    command = [sys.executable, str(SCRIPT), "--tiny", "--device", "cpu", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = read_json(out)
    assert list(found) == sorted(["command", *(step.name for step in gpu.STEPS)])
    assert len(done.stdout.splitlines()) == len(gpu.STEPS)
    assert not any(found[step.name]["broken"] for step in gpu.STEPS)
    assert found["null_spaces"]["layers_with_a_gap"] > 0
    assert {p.name for p in tmp_path.iterdir()} == {out.name}


def hangs(sizes: Any, folder: Path) -> Iterator[dict[str, Any]]:
    child = subprocess.Popen(["sleep", "60"])
    yield {"child": child.pid}
    time.sleep(60)


def dies(sizes: Any, folder: Path) -> Iterator[dict[str, Any]]:
    yield {"first": 1}
    os.kill(os.getpid(), signal.SIGKILL)


def fails(sizes: Any, folder: Path) -> Iterator[dict[str, Any]]:
    yield {"first": 1}
    raise ValueError("no such thing\nin two lines")


@pytest.mark.parametrize(
    ("run", "words"),
    [(hangs, "no end within 2 s"), (dies, "ended with -9"), (fails, "ValueError: no such thing in two lines")],
)
def test_a_step_that_does_not_end_well_is_told_with_what_it_had_found(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, run: Any, words: str
) -> None:
    steps: Any = ModuleType("gpu_steps")
    steps.sizes_of, steps.step = lambda device, tiny: None, run
    monkeypatch.setitem(sys.modules, "gpu_steps", steps)
    found: dict[str, Any] = {}
    for figures in gpu._run(gpu.Step("step", 2), "cpu", tiny=True):
        found |= figures
    assert found["wall_seconds"] < 15
    assert [said.strip() for said in found["broken"]] == [words]
    if run is hangs:
        assert _is_gone(found["child"])
    else:
        assert found["first"] == 1


def _is_gone(pid: int) -> bool:
    """Whether a process has ended, be it that nobody has taken its exit code yet."""
    for _ in range(50):
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.1)
    return False


def test_a_claim_that_does_not_hold_or_was_not_measured_is_named(gpu: ModuleType) -> None:
    step = gpu.Step("step", 1, at_most={"angle": 1e-7, "loss": 1}, speeds={"ratio": 3})
    said = ["angle is None, claimed at most 1e-07", "loss is nan, claimed at most 1"]
    assert gpu._broken(step, {"loss": float("nan"), "ratio": 2.9}, "cpu") == said
    assert gpu._broken(step, {"loss": 1, "angle": 0, "ratio": 2.9}, "cuda") == ["ratio is 2.9, claimed at least 3"]
    assert gpu._broken(step, {"loss": 1, "angle": 0, "ratio": 3}, "cuda") == []
    assert sum(s.seconds for s in gpu.STEPS) <= 8 * 60


def test_what_is_missing_is_named_before_anything_runs(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    has = gpu._has
    monkeypatch.setattr(gpu, "_has", lambda name: name not in ("peft", "ruamel.yaml") and has(name))
    assert gpu._refusal("cpu", tiny=True) == "missing packages; pip install peft ruamel.yaml"
    monkeypatch.undo()
    assert gpu._refusal("cpu", tiny=True) is None
    assert gpu._refusal("cpu", tiny=False) == "the true sizes are for a GPU; add --tiny"
