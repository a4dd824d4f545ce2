"""Training end to end, minutes shrunk to seconds."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from subspacelab.models.qwen_vl import QwenVLSizes
from subspacelab.synthetic.grounding.base import BaseTraining, train_base

SMALL = BaseTraining(
    steps=6,
    batch_size=2,
    pool=8,
    size=112,
    held_out=2,
    held_out_every=3,
    snapshot_every=2,
    sizes=QwenVLSizes(16, 2, 2, 16, 32, 2, 2, 32),
)


class Killed(Exception):
    """Stands for whatever ends a run."""


def _ignore(metrics: Mapping[str, float], step: int) -> None:
    assert all(isinstance(v, float) for v in metrics.values())


def _bytes(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    train_base(folder / "work", training=SMALL, seed=1, log=_ignore).save(folder / "out")
    return folder / "out"


def test_two_runs_give_the_same_bytes_and_a_seed_another_model(trained: Path, tmp_path: Path) -> None:
    train_base(tmp_path / "work", training=SMALL, seed=1, log=_ignore).save(tmp_path / "again")
    assert _bytes(tmp_path / "again") == _bytes(trained)
    train_base(tmp_path / "work", training=SMALL, seed=2, log=_ignore).save(tmp_path / "other")
    assert _bytes(tmp_path / "other") != _bytes(trained)


def test_a_killed_run_continues_to_the_same_bytes(trained: Path, tmp_path: Path) -> None:
    def kill(metrics: Mapping[str, float], step: int) -> None:
        if "held_out_iou" in metrics and step == 3:
            raise Killed

    with pytest.raises(Killed):
        train_base(tmp_path / "work", training=SMALL, seed=1, log=kill)
    assert (tmp_path / "work" / "snapshot.safetensors").is_file()
    train_base(tmp_path / "work", training=SMALL, seed=1, log=_ignore).save(tmp_path / "out")
    assert _bytes(tmp_path / "out") == _bytes(trained)


def test_transformers_loads_the_folder_unchanged(trained: Path) -> None:
    model, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(trained, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.dtype == torch.float32
    assert AutoTokenizer.from_pretrained(trained).eos_token == "<|endoftext|>"
    assert {p.name for p in trained.iterdir()} >= {"config.json", "generation_config.json", "preprocessor_config.json"}
