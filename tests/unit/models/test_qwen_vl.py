from pathlib import Path

import torch
from safetensors import safe_open

from subspacelab.core.files import read_json
from subspacelab.data.pictures import patchify
from subspacelab.models.qwen_vl import (
    QwenVLSizes,
    load_qwen_vl,
    prompt_embeddings,
    prompt_positions,
    save_qwen_vl,
    vision_tokens,
)
from subspacelab.synthetic.grounding.model import build_model
from subspacelab.synthetic.grounding.tokenizer import build_tokenizer

SIZES = QwenVLSizes(16, 2, 2, 16, 32, 2, 2, 32)


def test_shards_with_hub_key_names_round_trip(tmp_path: Path) -> None:
    model = build_model(build_tokenizer(), seed=0, sizes=SIZES)
    save_qwen_vl(model, tmp_path, max_shard_size="60KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    names = set(read_json(tmp_path / "model.safetensors.index.json")["weight_map"])
    assert {"visual.patch_embed.proj.weight", "model.layers.0.self_attn.q_proj.weight", "model.norm.weight"} <= names
    assert all(name.startswith(("visual.", "model.layers.", "model.embed_tokens.", "model.norm.")) for name in names)
    with safe_open(shards[0], "pt") as shard:
        assert all(shard.get_tensor(name).dtype == torch.float32 for name in shard.keys())  # noqa: SIM118
    again = load_qwen_vl(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_building_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first = build_model(build_tokenizer(), seed=5, sizes=SIZES)
    assert torch.equal(torch.rand(3), expected)
    second = build_model(build_tokenizer(), seed=5, sizes=SIZES)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_vision_tokens_are_in_raster_order_and_stand_in_the_prompt() -> None:
    model = build_model(build_tokenizer(), seed=0, sizes=SIZES).eval()
    images = torch.full((1, 112, 140, 3), 128, dtype=torch.uint8)
    changed = images.clone()
    changed[0, 28:56, 84:112] = 255  # cell in row 1, column 3 of 4 x 5: token 8
    with torch.no_grad():
        before, after = (
            vision_tokens(model, dict(zip(("pixel_values", "image_grid_thw"), patchify(i), strict=True)))
            for i in (images, changed)
        )
        prompt = prompt_embeddings(model, torch.arange(24)[None], before)
    assert before.shape == (1, 20, 32)
    assert (after - before).norm(dim=-1).argmax() == 8
    assert torch.equal(prompt[0, 1:21], before[0])
    assert torch.equal(prompt[0, 21:], model.get_input_embeddings().weight[21:24])


def test_positions_of_a_larger_picture_spread_over_those_that_are_known() -> None:
    plain, spread = prompt_positions(4, 25, 2), prompt_positions(4, 25, 2, span=2)
    assert torch.equal(spread[:, :2], plain[:, :2].float())
    assert torch.equal(spread[1:, 2:18] - 2, (plain[1:, 2:18] - 2) / 2)
    assert spread[:, 18:].tolist() == [[4, 5, 6, 7, 8, 9, 10]] * 3
    assert plain[:, 18:].tolist() == [[6, 7, 8, 9, 10, 11, 12]] * 3
