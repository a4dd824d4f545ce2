import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.language_models import FAMILIES, tiny_model, write_tiny_lm
from torch import nn

from subspacelab.models.causal_lm import load_causal_lm, load_tokenizer, target_linears

CPU = torch.device("cpu")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_linear_layer_but_the_head_is_a_target(family: str) -> None:
    model = tiny_model(family)
    found = target_linears(model)
    others = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n not in found]
    assert others == [next(n for n, m in model.named_modules() if m is model.get_output_embeddings())]
    assert len(found) == {"llama": 14, "qwen2": 14, "gpt_neox": 8, "opt": 12}[family]


def test_patterns_pick_layers_and_say_when_they_pick_none() -> None:
    model = tiny_model()
    assert list(target_linears(model, ["q_proj$", r"layers\.1\.mlp\.down"])) == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.mlp.down_proj",
    ]
    with pytest.raises(ValueError, match="'lm_head' matches none of the 14 linear layers; there are .*'down_proj'"):
        target_linears(model, ["q_proj", "lm_head"])
    with pytest.raises(ValueError, match=r"'q\(' is no regular expression"):
        target_linears(model, ["q("])


def test_model_and_tokenizer_come_back(tmp_path: Path) -> None:
    folder = write_tiny_lm(tmp_path / "lm", "qwen2")
    model, before = load_causal_lm(folder, device=CPU), tiny_model("qwen2")
    ids = torch.arange(20)[None]
    assert not model.training
    assert all(torch.equal(p, before.state_dict()[name]) for name, p in model.state_dict().items())
    # Equal weights, but read from a file they lie elsewhere in memory, where MKL may add in another order.
    torch.testing.assert_close(model(input_ids=ids).logits, before(input_ids=ids).logits)
    assert load_tokenizer(folder)("ad")["input_ids"] == [3, 6]


def test_dtype_is_float32_on_the_cpu_unless_asked(tmp_path: Path) -> None:
    folder = tmp_path / "half"
    tiny_model().bfloat16().save_pretrained(folder)
    assert load_causal_lm(folder, device=CPU).dtype == torch.float32
    assert load_causal_lm(folder, dtype=torch.bfloat16, device=CPU).dtype == torch.bfloat16


def test_a_missing_weight_is_not_made_up(tmp_path: Path) -> None:
    folder = write_tiny_lm(tmp_path / "lm")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp\.up_proj\.weight is missing \(1 weights in all\)"):
        load_causal_lm(folder, device=CPU)


def test_what_is_no_language_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config\.json"):
        load_causal_lm(tmp_path, device=CPU)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises((ValueError, OSError)):
        load_causal_lm(tmp_path, device=CPU)
