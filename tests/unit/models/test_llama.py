from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from subspacelab.checkpoints import open_checkpoint
from subspacelab.models.llama import LlamaSizes, TextTokens, build_llama, save_llama

TOKENS = TextTokens(300, 0, 1, 2)
SMALL = LlamaSizes(hidden=32, depth=2, heads=2, intermediate=48)


def test_the_seed_alone_draws_the_weights() -> None:
    before = torch.get_rng_state()
    first, again, other = (build_llama(SMALL, TOKENS, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_the_default_has_the_size_it_is_said_to_have() -> None:
    model = build_llama(LlamaSizes(), TextTokens(800, 0, 1, 2), seed=0)
    width, inner, vocabulary = 256, 688, 800
    wanted = 2 * vocabulary * width + 4 * (4 * width**2 + 3 * width * inner + 2 * width) + width
    assert sum(p.numel() for p in model.parameters()) == wanted == 3_574_016


def test_the_folder_is_an_ordinary_one_in_shards(tmp_path: Path) -> None:
    model = build_llama(SMALL, TOKENS, seed=0).eval()
    save_llama(model, tmp_path, max_shard_size="60KB")
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is type(model)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    ids = torch.arange(8)[None]
    assert all(torch.equal(p, model.state_dict()[name]) for name, p in loaded.state_dict().items())
    # Equal weights, but read from a file they lie elsewhere in memory, where MKL may add in another order.
    torch.testing.assert_close(loaded(input_ids=ids).logits, model(input_ids=ids).logits)
    config = AutoConfig.from_pretrained(tmp_path)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (0, 1, 2)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    with open_checkpoint(tmp_path) as checkpoint:
        assert "model.layers.1.self_attn.q_proj.weight" in checkpoint.names
