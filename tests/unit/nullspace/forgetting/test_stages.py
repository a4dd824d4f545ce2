"""The stages of the pipeline of forgetting on a tiny model, in a folder of their own."""

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
STUDY = """checkpoints: {llm: lm}
measure_forgetting:
  {methods: [lora_mlp, mica], seeds: [5], rate_factors: [1.0], rank: 4, steps: 4, batch_size: 4, num_validation: 4,
   num_test: 4, num_windows: 2, seq_len: 16, device: cpu}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    tiny_llama().save_pretrained(tmp_path / "lm")
    byte_tokenizer().save_pretrained(tmp_path / "lm")
    files = {
        "params.yaml": "study: demo\nrank: 8\nseed: 3\nthreads: 1\n",
        "pipelines/studies/smollm2.yaml": STUDY,
        "pipelines/smollm2/dvc.yaml": (ROOT / "pipelines" / "smollm2" / "dvc.yaml").read_text(),
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    for name in ("pipelines/measure_forgetting.py", "pipelines/compare_forgetting.py", "src"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "pipelines")
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # which a stage script sets
    monkeypatch.setattr(materials, "asked_probes", lambda probes: PROBES)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_a_stage_for_each_method_and_one_table_of_all(project: Path, capsys: pytest.CaptureFixture) -> None:
    measure, compare = (
        runpy.run_path(str(ROOT / "pipelines" / f"{name}.py"))["main"]
        for name in ("measure_forgetting", "compare_forgetting")
    )
    for method in ("lora_mlp", "mica"):
        measure(method)
    assert not any((project / ".cache" / "stages").rglob("curve.json"))  # work in progress goes when it is done
    compare()
    reports = project / "reports" / "smollm2"
    found = Forgetting.load(reports)
    assert list(found.chosen) == ["lora_mlp", "mica"]
    assert [len(Forgetting.load(reports / "methods" / m).curves) for m in found.chosen] == [1, 1]
    assert (reports / "pareto.png").stat().st_size > 10_000
    assert "mica" in capsys.readouterr().out
