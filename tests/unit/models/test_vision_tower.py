import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.tiny import LAYOUTS, Layout, tiny_qwen_vl_tensors, write_tiny_qwen_vl
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from subspacelab.checkpoints import Checkpoint, canonical_name, resolve_reference
from subspacelab.data.pictures import patchify
from subspacelab.models.qwen_vl import QwenVLSizes, load_qwen_vl, save_qwen_vl
from subspacelab.models.vision_tower import NESTED_PROCESSOR_NAME, PROCESSOR_NAME, VisionTower, load_vision_tower
from subspacelab.synthetic.grounding.model import build_model
from subspacelab.synthetic.grounding.tokenizer import build_tokenizer

SIZES = QwenVLSizes(16, 2, 2, 16, 32, 2, 2, 32)
CPU = torch.device("cpu")


def _tower(folder: Path) -> VisionTower:
    return load_vision_tower(resolve_reference(str(folder)), CPU)


def _images(count: int, size: int = 112) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in several shards with the hub's names and a picture processor; to be read only."""
    folder = tmp_path_factory.mktemp("saved")
    save_qwen_vl(build_model(build_tokenizer(), seed=0, sizes=SIZES), folder, max_shard_size="60KB")
    return folder


def _features_of_transformers(folder: Path, pixels: Tensor, grid: Tensor) -> Tensor:
    with torch.inference_mode():
        found = load_qwen_vl(folder).model.get_image_features(pixels, grid)
    per_image = getattr(found, "pooler_output", found)
    return torch.stack(list(per_image))


def test_features_are_those_of_the_whole_model(saved: Path) -> None:
    images = _images(3)
    features = _tower(saved).features(images)
    assert features.shape == (3, 16, SIZES.hidden)
    assert features.dtype == torch.float32
    # Equal numbers elsewhere in memory, where MKL may add in another order: float32 rounding.
    plain = _features_of_transformers(saved, *patchify(images))
    torch.testing.assert_close(features, plain, rtol=0, atol=1e-6)
    processor = Qwen2VLImageProcessorPil.from_pretrained(saved)
    theirs = processor([Image.fromarray(i.numpy()) for i in images], return_tensors="pt")
    expected = _features_of_transformers(saved, theirs["pixel_values"], theirs["image_grid_thw"])
    # The processor's pixels differ by rounding, up to 2e-6 (test_patches); the tower amplifies little.
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_a_picture_gives_the_same_alone_and_in_a_batch(saved: Path) -> None:
    tower, images = _tower(saved), _images(3)
    alone = torch.cat([tower.features(image[None]) for image in images])
    # Products of another height may add up in another order: float32 rounding.
    torch.testing.assert_close(tower.features(images), alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("cell", [(0, 0), (0, 7), (2, 5), (4, 3), (7, 0), (7, 7)])
def test_a_cell_moves_its_token_in_raster_order_the_most(tmp_path: Path, cell: tuple[int, int]) -> None:
    side = 8  # two windows of attention in each direction, which the tower reorders within
    tower = _tower(write_tiny_qwen_vl(tmp_path))
    before, (i, j) = _images(1, 28 * side), cell
    after = before.clone()
    after[0, 28 * i : 28 * (i + 1), 28 * j : 28 * (j + 1)] = 255
    moved = (tower.features(after) - tower.features(before))[0].norm(dim=-1)
    assert moved.argmax() == side * i + j
    assert moved.max() > 2 * moved.topk(2).values[1]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_way_of_naming_the_weights_gives_the_same(tmp_path: Path, layout: Layout) -> None:
    written = [write_tiny_qwen_vl(tmp_path / name, layout=name, sharded=True) for name in ("legacy", layout)]
    first, second = (_tower(folder).features(_images(1)) for folder in written)
    # Names of other lengths put the weights elsewhere in memory, where MKL may add in another order.
    torch.testing.assert_close(first, second, rtol=0, atol=1e-6)


def test_only_the_weights_of_the_tower_are_read(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = Checkpoint.read

    def recording(self: Checkpoint, name: str) -> Tensor:
        read.append(name)
        return original(self, name)

    monkeypatch.setattr(Checkpoint, "read", recording)
    _tower(saved)
    index = json.loads((saved / "model.safetensors.index.json").read_text())["weight_map"]
    visual = {name for name in index if canonical_name(name).startswith("visual.")}
    assert set(read) == visual
    assert {index[name] for name in read} < set(index.values())


def test_features_come_in_the_dtype_of_the_checkpoint(tmp_path: Path) -> None:
    half = _tower(write_tiny_qwen_vl(tmp_path / "half", dtype=torch.bfloat16))
    same = {name: t.bfloat16().float() for name, t in tiny_qwen_vl_tensors().items()}
    full = _tower(write_tiny_qwen_vl(tmp_path / "full", tensors=same))
    features = half.features(_images(2))
    assert features.dtype == half.storage_dtype == torch.bfloat16
    # Computed in float32 from equal weights; its last bits may decide which bf16 number is the nearest.
    torch.testing.assert_close(features, full.features(_images(2)).bfloat16(), rtol=2**-7, atol=1e-6)


def test_another_family_is_refused(tmp_path: Path) -> None:
    folder = write_tiny_qwen_vl(tmp_path)
    for config, named in (({"model_type": "llama"}, "'llama'"), ({}, "'no model_type'")):
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=f"{named}; features need a 'qwen2_5_vl' checkpoint"):
            _tower(folder)


@pytest.mark.parametrize("name", ["visual.merger.ln_q.weight", "visual.blocks.1.attn.proj.bias"])
def test_a_missing_weight_is_named(tmp_path: Path, name: str) -> None:
    folder = write_tiny_qwen_vl(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=rf"{name} is missing \(1 in all\)"):
        _tower(folder)


def test_a_weight_of_another_shape_is_named(tmp_path: Path) -> None:
    tensors = tiny_qwen_vl_tensors() | {"visual.merger.ln_q.weight": torch.ones(5)}
    with pytest.raises(ValueError, match=r"visual\.merger\.ln_q\.weight: shape \[5\], config.json says \[32\]"):
        _tower(write_tiny_qwen_vl(tmp_path, tensors=tensors))


PROCESSOR_FAULTS = [("image_mean", [0.5, 0.5, 0.5]), ("image_std", [1, 1, 1]), ("patch_size", 16), ("merge_size", 4)]
PROCESSOR_FAULTS += [("temporal_patch_size", 1), ("do_normalize", False), ("rescale_factor", 1.0)]


@pytest.mark.parametrize(("key", "value"), PROCESSOR_FAULTS)
def test_a_processor_with_other_settings_is_refused(saved: Path, tmp_path: Path, key: str, value: object) -> None:
    folder = tmp_path / "other"
    shutil.copytree(saved, folder)
    settings = json.loads((folder / PROCESSOR_NAME).read_text())
    (folder / PROCESSOR_NAME).write_text(json.dumps(settings | {key: value}))
    with pytest.raises(ValueError, match=f"/{PROCESSOR_NAME}: {key} is .* is supported"):
        _tower(folder)
    # transformers 5 looks into the other file first.
    (folder / NESTED_PROCESSOR_NAME).write_text(json.dumps({"image_processor": settings}))
    _tower(folder)
    (folder / PROCESSOR_NAME).write_text(json.dumps(settings))
    (folder / NESTED_PROCESSOR_NAME).write_text(json.dumps({"image_processor": settings | {key: value}}))
    with pytest.raises(ValueError, match=f"/{NESTED_PROCESSOR_NAME}: {key} is .* is supported"):
        _tower(folder)
    (folder / NESTED_PROCESSOR_NAME).write_text(json.dumps({"processor_class": "Qwen2_5_VLProcessor"}))
    _tower(folder)


@pytest.mark.parametrize("settings", [{"min_pixels": 4000}, {"size": {"shortest_edge": 4000}}, {"max_pixels": 3000}])
def test_a_size_that_the_processor_would_change_is_refused(saved: Path, tmp_path: Path, settings: dict) -> None:
    folder = tmp_path / "other"
    shutil.copytree(saved, folder)
    (folder / PROCESSOR_NAME).write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="image_size 56 has 3136; choose another image_size"):
        load_vision_tower(resolve_reference(str(folder)), CPU, 56)
    load_vision_tower(resolve_reference(str(folder)), CPU)


def test_a_weight_without_a_place_is_named(tmp_path: Path) -> None:
    for name in ("visual.merger.extra.weight", "visual.blocks.1.attn.q_norm.weight"):
        tensors = tiny_qwen_vl_tensors() | {name: torch.ones(5)}
        with pytest.raises(ValueError, match=rf"{name} has no place in the tower \(1 such weights\)"):
            _tower(write_tiny_qwen_vl(tmp_path, tensors=tensors))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("depth", 10**9, "config.json says 1000000000 blocks of the tower, the files hold 2"),
        ("depth", 1, "config.json says 1 blocks of the tower, the files hold 2"),
        ("hidden_size", 2**20, "shape .*, config.json says"),
        ("intermediate_size", 2**40, "shape .*, config.json says"),
        ("out_hidden_size", 2**40, "shape .*, config.json says"),
        ("window_size", 2**40, "window_size 1099511627776 is not from 28"),
        ("num_heads", 5, "5 heads of the tower do not share 32"),
        ("patch_size", 16, "patch_size is 16, only 14 is supported"),
        ("depth", "many", "describes no vision tower"),
    ],
)
def test_declared_sizes_are_checked_before_memory_is_asked_for(
    tmp_path: Path, key: str, value: object, said: str
) -> None:
    folder = write_tiny_qwen_vl(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"][key] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=said) as e:
        _tower(folder)
    assert "\n" not in str(e.value)


def test_features_of_a_float64_checkpoint_are_stored_in_float32(tmp_path: Path) -> None:
    assert _tower(write_tiny_qwen_vl(tmp_path, dtype=torch.float64)).features(_images(1)).dtype == torch.float32
