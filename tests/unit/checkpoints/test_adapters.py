"""Adapters are found on disk and on the hub, and their settings are read as PEFT reads them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.utils.other import get_pattern_key
from safetensors.torch import save_file
from tests.unit.checkpoints.refusal import refusal

from subspacelab.checkpoints import open_adapter
from subspacelab.checkpoints.adapters import AdapterConfig

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / COMMIT
    place.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "base_model_name_or_path": "org/base", "task_type": None}
    (place / "adapter_config.json").write_text(json.dumps(config))
    tensors = {"lora_A.default.weight": torch.ones(2, 3), "lora_B.default.weight": torch.ones(5, 2)}
    save_file({f"base_model.model.a.b.{k}": t for k, t in tensors.items()}, place / "adapter_model.safetensors")
    return place


def test_a_folder_is_opened(folder: Path) -> None:
    adapter = open_adapter(folder)
    assert list(adapter.layers) == ["a.b"]  # the name of the adapter is no part of the module's
    assert adapter.shape(adapter.layers["a.b"]) == (5, 3)
    left, right = adapter.factors(adapter.layers["a.b"], transposed=False)
    assert torch.equal(left @ right, torch.full((5, 3), 8.0, dtype=torch.float64))
    turned = adapter.factors(adapter.layers["a.b"], transposed=True)
    assert torch.equal(turned[0] @ turned[1], (left @ right).T)
    assert (adapter.revision, adapter.config.base_model_name_or_path) == (None, "org/base")


def test_the_hub_is_asked_for_the_adapters_files_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def snapshot(repo: str, **given: Any) -> str:
        asked.update(given, repo=repo)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert open_adapter("org/lora@main").revision == COMMIT
    assert (asked["repo"], asked["revision"]) == ("org/lora", "main")
    assert asked["allow_patterns"] == ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"]

    def unreachable(repo: str, **given: Any) -> str:
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    assert "org/lora: no such local folder, and it could not be fetched" in refusal(lambda: open_adapter("org/lora"))


@pytest.mark.parametrize("module", ["model.layers.1.q_proj", "model.layers.11.q_proj", "q_proj", "model.up_proj"])
def test_patterns_match_as_pefts(module: str) -> None:
    ranks = {"layers.1.q_proj": 3, "up_proj": 5, r".*\.layers\.\d+\.q_proj": 7}
    config = AdapterConfig(peft_type="LORA", r=2, lora_alpha=6, rank_pattern=ranks)
    assert config.rank(module) == ranks.get(get_pattern_key(ranks, module), 2)
    assert config.scaling(module) == 6 / config.rank(module)
    assert AdapterConfig(peft_type="LORA", r=4, lora_alpha=6, use_rslora=True).scaling(module) == 3


@pytest.mark.parametrize(
    ("shapes", "flag", "turned"),
    [
        ({"a": (3, 5), "s": (4, 4)}, False, {"a": True, "s": True}),
        ({"a": (5, 3), "s": (4, 4)}, True, {"a": False, "s": False}),
        ({"s": (4, 4)}, True, {"s": True}),
        ({"a": (3, 5), "b": (5, 3), "s": (4, 4)}, True, {"a": True, "b": False, "s": False}),
    ],
)
def test_square_weights_are_taken_as_the_others_are(
    folder: Path, shapes: dict[str, tuple[int, int]], flag: bool, turned: dict[str, bool]
) -> None:
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "fan_in_fan_out": flag}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    sides = {"a": (5, 3), "b": (5, 3), "s": (4, 4)}
    tensors = {f"{m}.lora_A.weight": torch.ones(2, n) for m, (_, n) in sides.items()}
    tensors |= {f"{m}.lora_B.weight": torch.ones(out, 2) for m, (out, _) in sides.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    assert open_adapter(folder).transposed(shapes) == turned
