import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from tests.language_models import FAMILIES, tiny_model, write_tiny_lm
from torch import nn

from subspacelab.core.files import read_json, write_json
from subspacelab.models.adaptable import Reach, reach, target_linears
from subspacelab.models.causal_lm import load_causal_lm, load_tokenizer, quiet, unused_weights
from subspacelab.models.lora_folder import lora_config
from subspacelab.models.lora_model import lora_layers

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


SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
INNER = SIZES | {"intermediate_size": 48, "num_key_value_heads": 2}


def test_a_file_that_transformers_cannot_use_is_named(tmp_path: Path) -> None:
    write_tiny_lm(tmp_path, "llama")
    write_json(tmp_path / "generation_config.json", {"pad_token_id": "0"})
    with pytest.raises(ValueError, match=r"generation_config\.json: not what transformers reads"):
        load_causal_lm(tmp_path, device=CPU)
    (tmp_path / "model.safetensors").rename(tmp_path / "x.safetensors")
    write_json(tmp_path / "model.safetensors.index.json", {"weight_map": {"model.norm.weight": "x.safetensors"}})
    with pytest.raises(ValueError, match=r"index\.json: holds no mapping `metadata`"):
        load_causal_lm(tmp_path, device=CPU)


def write_model(folder: Path, config: Any) -> Path:
    """A model of that config, as transformers draws and writes it."""
    with torch.random.fork_rng(), quiet():
        torch.manual_seed(0)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def set_config(folder: Path, **changes: Any) -> Path:
    write_json(folder / "config.json", read_json(folder / "config.json") | changes)
    return folder


UNPLACED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a bias": (
        lambda t: t.update({"model.layers.0.self_attn.o_proj.bias": torch.ones(24)}),
        r"layers\.0\.self_attn\.o_proj\.bias is stored and has no place in LlamaForCausalLM \(1 weights in all\)",
    ),
    "a layer too many": (
        lambda t: t.update({"model.layers.2.mlp.up_proj.weight": torch.ones(40, 24)}),
        r"layers\.2\.mlp\.up_proj\.weight is stored and has no place",
    ),
    "names with a wrapper": (
        lambda t: [t.update({f"_orig_mod.{name}": t.pop(name)}) for name in list(t)],
        r"is missing \(21 weights in all\), and _orig_mod.* has no place .* names that transformers saves",
    ),
    "another shape": (
        lambda t: t.update({"model.norm.weight": torch.ones(3)}),
        r"model\.norm\.weight is \[3\], config\.json says \[24\]",
    ),
    "codes": (
        lambda t: t.update({"model.layers.0.mlp.up_proj.weight": torch.ones(40, 24, dtype=torch.int8)}),
        "quantised; adapters are built on the unquantised",
    ),
    "codes with a scale": (
        lambda t: t.update(
            {
                "model.layers.0.mlp.up_proj.weight": torch.ones(40, 24).to(torch.float8_e4m3fn),
                "model.layers.0.mlp.up_proj.weight_scale": torch.ones(1),
            }
        ),
        "quantised; adapters are built on the unquantised",
    ),
}


@pytest.mark.parametrize("case", UNPLACED)
def test_what_is_stored_has_a_place_or_is_named(tmp_path: Path, case: str) -> None:
    change, words = UNPLACED[case]
    edit(write_tiny_lm(tmp_path / "lm"), change)
    with pytest.raises(ValueError, match=words):
        load_causal_lm(tmp_path / "lm", device=CPU)


def test_what_old_versions_stored_and_layers_of_other_uses_are_told_and_harmless(tmp_path: Path) -> None:
    old = {
        "gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 4, 4).bool(),
        "gpt_neox.layers.0.attention.masked_bias": torch.tensor(-1e9),
        "gpt_neox.layers.0.attention.rotary_emb.inv_freq": torch.ones(4),
    }
    neox = edit(write_tiny_lm(tmp_path / "neox", "gpt_neox"), lambda t: t.update(old))
    assert unused_weights(neox, load_causal_lm(neox, device=CPU)) == sorted(old)
    config = transformers.Qwen3NextConfig(
        **INNER, num_experts=2, num_experts_per_tok=1, layer_types=["full_attention"] * 2, head_dim=8
    )
    mtp = edit(write_model(tmp_path / "next", config), lambda t: t.update({"mtp.fc.weight": torch.ones(4, 4)}))
    assert unused_weights(mtp, load_causal_lm(mtp, device=CPU)) == ["mtp.fc.weight"]
    with pytest.raises(ValueError, match=r"config\.json: describes a model that does not run"):
        load_causal_lm(set_config(mtp, num_experts_per_tok=3), device=CPU)
    tied = edit(
        write_tiny_lm(tmp_path / "lm"), lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()})
    )
    assert unused_weights(tied, load_causal_lm(tied, device=CPU)) == []


def test_an_adapter_beside_the_weights_is_not_looked_at_and_one_alone_is_named(tmp_path: Path) -> None:
    folder, ids = write_tiny_lm(tmp_path / "lm"), torch.arange(20)[None]
    before = load_causal_lm(folder, device=CPU)(input_ids=ids).logits
    named = {"peft_type": "LORA", "base_model_name_or_path": str(write_tiny_lm(tmp_path / "other", seed=1)), "r": 2}
    write_json(folder / "adapter_config.json", named | {"target_modules": ["q_proj"]})
    up, down = {"lora_B.weight": torch.ones(24, 2)}, {"lora_A.weight": torch.ones(2, 24)}
    stem = "base_model.model.model.layers.0.self_attn.q_proj."
    save_file({stem + n: t for n, t in (up | down).items()}, folder / "adapter_model.safetensors")
    assert torch.equal(load_causal_lm(folder, device=CPU)(input_ids=ids).logits, before)
    (folder / "model.safetensors").unlink()
    for gone in ("config.json", None):  # with a config.json and without
        with pytest.raises(ValueError, match="an adapter alone, made for '.*other'; give that model, or one that"):
            load_causal_lm(folder, device=CPU)
        (folder / gone).unlink() if gone else None


SETTINGS = {
    "layers": ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1e.09, and only 20 weights are stored"),
    "labels": ({"num_labels": 10**9}, "num_labels is 1e.09, and only 20"),
    "width": ({"hidden_size": 4 * 10**9}, r"describes \d+ parameters, and \d+ are stored"),
    "vocabulary": ({"vocab_size": 10**12}, r"describes \d+ parameters, and \d+ are stored"),
    "twice the layers": ({"num_hidden_layers": 6}, r"describes \d+ parameters"),
    "code of the hub": ({"attn_implementation": "org/kernel"}, "'org/kernel', code of another repository; take"),
    "other weights": ({"transformers_weights": "x.safetensors"}, "names other weights, 'x.safetensors'; take that key"),
    "quantised": ({"quantization_config": {"quant_method": "gptq"}}, "quantised; adapters are built on"),
    "own code": (
        {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}},
        "it needs code of its own, which is never run",
    ),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_a_config_is_measured_by_what_is_stored_before_anything_is_built(tmp_path: Path, case: str) -> None:
    changes, words = SETTINGS[case]
    folder = set_config(write_tiny_lm(tmp_path / "lm"), **changes)
    (folder / "mine.py").write_text("raise SystemExit('code of the folder ran')")
    with pytest.raises(ValueError, match=words):
        load_causal_lm(folder, device=CPU)


def test_code_beside_a_known_model_is_not_run(tmp_path: Path) -> None:
    folder = set_config(write_tiny_lm(tmp_path / "lm"), auto_map={"AutoModelForCausalLM": "mine.Model"})
    (folder / "mine.py").write_text("raise SystemExit('code of the folder ran')")
    assert type(load_causal_lm(folder, device=CPU)).__name__ == "LlamaForCausalLM"


def test_encoders_and_bare_trunks_are_called_that(tmp_path: Path) -> None:
    config = transformers.BertConfig(**SIZES, intermediate_size=48)
    with pytest.raises(ValueError, match="BertLMHeadModel looks ahead, as encoders do"):
        load_causal_lm(write_model(tmp_path / "encoder", config), device=CPU)
    trunk = write_model(tmp_path / "trunk", transformers.LlamaConfig(**INNER))
    edit(trunk, lambda t: t.pop("lm_head.weight"))
    with pytest.raises(ValueError, match=r"stores no head that predicts words \(lm_head\.weight is missing\)"):
        load_causal_lm(trunk, device=CPU)


def test_a_tokenizer_that_lacks_a_package_names_it(tmp_path: Path) -> None:
    folder = write_tiny_lm(tmp_path / "lm")
    set_config(folder, model_type="llama")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"pieces")
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer"})
    with pytest.raises(ValueError, match=r"tokenizer\.model needs sentencepiece; pip install sentencepiece"):
        load_tokenizer(folder)


@pytest.mark.parametrize("limit", ["long", [1], {}])
def test_a_tokenizer_whose_limit_is_no_number_is_refused(tmp_path: Path, limit: Any) -> None:
    folder = write_tiny_lm(tmp_path / "lm")
    path = folder / "tokenizer_config.json"
    write_json(path, read_json(path) | {"model_max_length": limit})
    with pytest.raises(ValueError, match="no tokenizer that can be read"):
        load_tokenizer(folder)


MOE = INNER | {"num_local_experts": 4}


@pytest.mark.parametrize(
    ("config", "share", "left_out"),
    [
        (transformers.MixtralConfig(**MOE), 13, "model.layers.*.mlp.experts.gate_up_proj (52 %)"),
        (transformers.GptOssConfig(**MOE, head_dim=8), 13, "model.layers.*.mlp.experts.gate_up_proj (50 %)"),
        (transformers.Phi3Config(**INNER, pad_token_id=None), 78, "lm_head.weight (10 %)"),
    ],
)
def test_how_much_of_a_model_adapters_reach(config: Any, share: int, left_out: str) -> None:
    model = transformers.AutoModelForCausalLM.from_config(config)
    found = reach(model, target_linears(model))
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert found.reached == found.parameters - sum(found.left_out.values())
    warned = "warning: " if share < 33 else ""
    assert found.said().startswith(f"{warned}adapters reach {share} % of {found.parameters:,} parameters")
    assert left_out in found.said()


def test_adapters_are_for_layers_that_give_one_product() -> None:
    """Llama 4's router is an nn.Linear that gives two tensors; Falcon's linear layer is only written differently."""
    sizes = {"intermediate_size_mlp": 48, "head_dim": 8, "num_local_experts": 4, "attn_implementation": "eager"}
    llama4 = transformers.AutoModelForCausalLM.from_config(transformers.Llama4TextConfig(**INNER, **sizes))
    assert any(name.endswith("router") for name, _ in llama4.named_modules())
    assert not any(name.endswith("router") for name in target_linears(llama4))
    falcon = transformers.FalconConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=4)
    assert len(target_linears(transformers.AutoModelForCausalLM.from_config(falcon))) == 4


def test_layers_that_peft_takes_for_experts_are_left_out() -> None:
    """Of DeepSeek-V3 and kin PEFT turns `gate_proj` into the fused experts: what we built would lie elsewhere."""
    sizes = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
    experts = {"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2}
    config = transformers.DeepseekV3Config(**INNER, **sizes, **experts, first_k_dense_replace=1)
    model = transformers.AutoModelForCausalLM.from_config(config)
    linears = target_linears(model)
    assert len(linears) == 10
    assert all(".self_attn." in name for name in linears)
    live = get_peft_model(model, lora_config(list(linears), 2))
    assert {name for name, _ in lora_layers(live)} == set(linears)


def test_a_weight_that_two_layers_share_is_counted_once() -> None:
    model = tiny_model()
    first, second = (layer.mlp for layer in model.model.layers)
    second.up_proj.weight = first.up_proj.weight
    found = reach(model, target_linears(model, ["up_proj"]))
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert found.reached == first.up_proj.weight.numel()


def test_a_share_below_one_in_a_hundred_is_not_nothing() -> None:
    said = (
        "warning: adapters reach less than 1 % of 1,000 parameters, less than a third, and 20 % of those in its blocks"
    )
    assert Reach(1000, 1, {"layers.*.norm.weight": 4}).said() == said


def test_the_share_of_the_blocks_counts_neither_embeddings_nor_head() -> None:
    config = transformers.LlamaConfig(**INNER | {"vocab_size": 4096})
    model = transformers.AutoModelForCausalLM.from_config(config)
    found = reach(model, target_linears(model))
    norms = sum(p.numel() for p in model.model.layers.parameters() if p.ndim == 1)
    blocks = sum(p.numel() for p in model.model.layers.parameters())
    assert found.share < 0.1
    assert found.share_of_blocks == (blocks - norms) / blocks


def test_a_model_of_other_layers_says_of_which() -> None:
    config = transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=4, n_positions=16)
    with pytest.raises(ValueError, match=r"no nn\.Linear besides its head, .* made of \['Conv1D', 'Embedding'"):
        target_linears(transformers.AutoModelForCausalLM.from_config(config))


@pytest.mark.parametrize("named", [1, 2])
@pytest.mark.parametrize("prefix", ["model.", ""])
def test_of_a_tensor_in_two_shards_the_one_that_the_index_names_is_taken(
    tmp_path: Path, named: int, prefix: str
) -> None:
    folder = write_tiny_lm(tmp_path / "lm")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    wanted = "model.layers.0.mlp.up_proj.weight"
    stored = {name.removeprefix("model.") if not prefix else name: tensor for name, tensor in tensors.items()}
    twice = wanted if prefix else wanted.removeprefix("model.")
    shards = {f"model-0000{i}-of-00002.safetensors": dict(list(stored.items())[i - 1 :: 2]) for i in (1, 2)}
    weight_map = {name: shard for shard, held in shards.items() for name in held}
    for number, (shard, held) in enumerate(shards.items(), start=1):
        held[twice] = tensors[wanted] if number == named else torch.full_like(tensors[wanted], 7.0)
        save_file(held, folder / shard, metadata={"format": "pt"})
    weight_map[twice] = list(shards)[named - 1]
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    assert torch.equal(load_causal_lm(folder, device=CPU).state_dict()[wanted], tensors[wanted])


def test_a_pad_token_beyond_the_vocabulary_is_one_line(tmp_path: Path) -> None:
    """torch asserts it."""
    folder = write_tiny_lm(tmp_path / "lm")
    write_json(folder / "config.json", read_json(folder / "config.json") | {"pad_token_id": 10**12})
    with pytest.raises(ValueError, match="config.json: describes no causal language model .*Padding_idx"):
        load_causal_lm(folder, device=CPU)
