"""The stage `measure_forgetting` on a tiny model, in a folder of its own."""

import os
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.unit.nullspace.forgetting.chat_model import PROBES, byte_tokenizer, tiny_llama

from subspacelab.nullspace.forgetting import materials
from subspacelab.nullspace.forgetting.results import Forgetting

ROOT = Path(__file__).resolve().parents[4]
STUDY = """measure_forgetting:
  {methods: METHODS, seeds: [5], rate_factors: [1.0], rank: 4, steps: 4, batch_size: 4, num_validation: 4,
   num_test: 4, num_windows: 2, seq_len: 16, device: cpu}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    llm = tmp_path / "data" / "checkpoints" / "llm"
    tiny_llama().save_pretrained(llm)
    byte_tokenizer().save_pretrained(llm)
    (tmp_path / "params.yaml").write_text("study: tiny\nrank: 8\nseed: 3\nthreads: 1\n")
    (tmp_path / "pipelines" / "studies").mkdir(parents=True)
    for name in ("pipelines/measure_forgetting.py", "src", "dvc.yaml"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "pipelines")
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # which a stage script sets
    monkeypatch.setattr(materials, "asked_probes", lambda probes: PROBES)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


def run(project: Path, methods: str) -> Path:
    (project / "pipelines" / "studies" / "tiny.yaml").write_text(STUDY.replace("METHODS", methods))
    runpy.run_path(str(ROOT / "pipelines" / "measure_forgetting.py"))["main"]()
    return project / "reports" / "forgetting"


@pytest.mark.slow
def test_methods_are_measured_and_no_work_in_progress_is_left(project: Path, capsys: pytest.CaptureFixture) -> None:
    out = run(project, "[lora_mlp, mica]")
    found = Forgetting.load(out)
    assert list(found.chosen) == ["lora_mlp", "mica"]
    assert (out / "pareto.png").stat().st_size > 10_000
    assert "mica" in capsys.readouterr().out
    assert not any((project / ".cache" / "stages").rglob("curve.json"))


def test_without_methods_there_is_nothing_to_do(project: Path) -> None:
    assert os.listdir(run(project, "[]")) == []
