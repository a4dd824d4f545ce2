"""Block by block a checkpoint gives the hidden states and logits of the whole model, to the last bit."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from subspacelab.models import block_stream
from subspacelab.models.adaptable import target_linears
from subspacelab.models.block_stream import BlockStream, WholeModel, open_stream, stream_of, with_adapter
from subspacelab.models.causal_lm import load_causal_lm
from subspacelab.models.lora_factors import Factors

CPU = torch.device("cpu")
SIZES = {"vocab_size": 64, "hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 4}
ENDS = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
GATED = {**SIZES, **ENDS, "num_key_value_heads": 2, "intermediate_size": 40}
MIXED = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"] * 2}
GEMMA3N = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 64, "num_kv_shared_layers": 2}
GEMMA3N |= {"laurel_rank": 4, "altup_num_inputs": 2}
CONFIGS: dict[str, Any] = {
    "llama, tied": transformers.LlamaConfig(**GATED, tie_word_embeddings=True),
    "qwen2, windows in some layers": transformers.Qwen2Config(
        **GATED, use_sliding_window=True, sliding_window=5, max_window_layers=2
    ),
    "qwen3": transformers.Qwen3Config(**GATED, head_dim=6),
    "gemma3": transformers.Gemma3TextConfig(**GATED, head_dim=6, **MIXED),
    "mixtral": transformers.MixtralConfig(**GATED, num_local_experts=4, sliding_window=4),
    "phi3": transformers.Phi3Config(**GATED),
    "gpt_neox": transformers.GPTNeoXConfig(**SIZES, **ENDS, intermediate_size=40, max_position_embeddings=128),
    "opt": transformers.OPTConfig(**SIZES, **ENDS, ffn_dim=40, word_embed_proj_dim=24, max_position_embeddings=128),
    "bloom": transformers.BloomConfig(vocab_size=64, hidden_size=24, n_layer=4, n_head=4, **ENDS),
    "gptj": transformers.GPTJConfig(
        vocab_size=64, n_embd=24, n_layer=4, n_head=4, rotary_dim=4, n_positions=64, **ENDS
    ),
}
WHOLE: dict[str, Any] = {
    "gemma3n: keys and values shared, inputs of each layer": transformers.Gemma3nTextConfig(
        **GATED | MIXED | GEMMA3N | {"head_dim": 6, "activation_sparsity_pattern": [0.0] * 4}
    ),
    "opt: projections around the blocks": transformers.OPTConfig(
        **SIZES, **ENDS, ffn_dim=40, word_embed_proj_dim=12, max_position_embeddings=128
    ),
}


def write_model(folder: Path, config: Any) -> Path:
    """A model of random weights, large enough for every part to matter."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.2 if parameter.ndim > 1 else 0.1)
    model.save_pretrained(folder)
    return folder


def windows() -> tuple[Tensor, Tensor]:
    """Two windows, longer than the sliding ones, the second with padding."""
    ids = torch.randint(3, 64, (2, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[1, 9:] = False
    return ids, mask


def passed(stream: BlockStream, ids: Tensor, mask: Tensor) -> Iterator[Tensor]:
    """The states after the embedding and after each block, then the logits."""
    with stream.ends():
        states = stream.embed(ids, mask)
    yield states
    for index in range(len(stream)):
        with stream.loaded(index):
            states = stream.run(index, states, mask, to_logits=True)
        yield states
    with stream.ends():
        yield stream.logits(states)


@pytest.mark.parametrize("family", CONFIGS)
def test_states_and_logits_are_those_of_the_whole_model_to_the_last_bit(tmp_path: Path, family: str) -> None:
    folder = write_model(tmp_path, CONFIGS[family])
    (ids, mask), whole = windows(), load_causal_lm(folder, device=CPU)
    stream, linears = open_stream(folder, device=CPU)
    assert not stream.note
    with torch.no_grad():
        expected = whole(input_ids=ids, attention_mask=mask.long(), use_cache=False, output_hidden_states=True)
    *states, logits = passed(stream, ids, mask)
    for found, wanted in zip(states[:-1], expected.hidden_states[:-1], strict=True):  # the last one is normed
        assert torch.equal(found[mask], wanted[mask])
    assert torch.equal(logits[mask], expected.logits[mask])
    assert list(linears) == list(target_linears(whole))


@pytest.mark.parametrize("family", CONFIGS)
def test_only_one_block_is_in_memory(tmp_path: Path, family: str) -> None:
    stream, _ = open_stream(write_model(tmp_path, CONFIGS[family]), device=CPU)

    def held() -> set[int | None]:
        names = [name for name, p in stream.model.named_parameters() if not p.is_meta]
        return {next((i for i in range(len(stream)) if stream.within(i, {name: 0})), None) for name in names}

    with stream.loaded(2):
        assert held() <= {2, None}
        assert 2 in held()
    assert held() == {None}
    ends = (stream.model.get_input_embeddings(), stream.model.get_output_embeddings())
    assert all(end.weight.is_meta for end in ends)


@pytest.mark.parametrize("family", WHOLE)
def test_what_passes_more_than_states_between_blocks_is_run_as_a_whole(tmp_path: Path, family: str) -> None:
    folder = write_model(tmp_path, WHOLE[family])
    (ids, mask), whole = windows(), load_causal_lm(folder, device=CPU)
    stream, linears = open_stream(folder, device=CPU)
    assert isinstance(stream, WholeModel)
    assert stream.note.endswith("the whole model is held in memory")
    assert stream.within(0, linears) == linears
    with torch.no_grad():
        expected = whole(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits
    *_, logits = passed(stream, ids, mask)
    assert torch.equal(logits[mask], expected[mask])


def test_a_live_model_keeps_its_weights_and_its_own_forward_pass(tmp_path: Path) -> None:
    model = load_causal_lm(write_model(tmp_path, CONFIGS["gemma3"]), device=CPU)
    block = model.model.layers[1]
    block.forward = own = block.forward  # as accelerate sets one
    stream = stream_of(model, target_linears(model))
    (ids, mask), before = windows(), {name: p.clone() for name, p in model.named_parameters()}
    *_, logits = passed(stream, ids, mask)
    with torch.no_grad():
        assert torch.equal(logits[mask], model(input_ids=ids, attention_mask=mask.long()).logits[mask])
    assert vars(block)["forward"] == own
    assert "forward" not in vars(model.model.layers[0])
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


class Trunk(nn.Module):
    """Two linear blocks, with what a test puts between them."""

    def __init__(self, between: Any) -> None:
        super().__init__()
        self.words, self.layers, self.between = nn.Embedding(64, 8), nn.ModuleList(map(Layer, range(2))), between
        self.base_model, self.device = self, CPU
        self.config = transformers.LlamaConfig(vocab_size=64)

    def forward(self, input_ids: Any = None, inputs_embeds: Any = None, **_: Any) -> Tensor:
        states = self.words(input_ids) if inputs_embeds is None else inputs_embeds
        shared: dict[str, Any] = {}
        for i, layer in enumerate(self.layers):
            states, more = self.between(i, states, shared)
            states = layer(states, **more)
        return states

    base_model: Any


class Layer(nn.Module):
    def __init__(self, _: int) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, states: Tensor, **_: Any) -> Tensor:
        return self.linear(states)


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (lambda i, states, shared: (states, {"scale": 1.5}), ""),
        (lambda i, states, shared: (states * 2, {}), "changes the hidden states between"),
        (lambda i, states, shared: (states, {"shared": shared}), "more than hidden states"),
        (lambda i, states, shared: (states, {"cache": [1, 2]}), "more than hidden states"),
        (lambda i, states, shared: (states, {"mean": states.mean()}), "more than hidden states"),
    ],
)
def test_what_travels_between_blocks_is_found_by_looking(between: Any, reason: str) -> None:
    object.__setattr__(model := Trunk(between), "base_model", model)
    stream = BlockStream(model, block_stream.find_blocks(model), None, CPU)
    assert reason in stream.why_not({"layers.0.linear": model.layers[0].linear})
    assert "outside of its blocks" in stream.why_not({"words": model.words})


def test_an_adapter_adds_what_peft_adds(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = load_causal_lm(write_model(tmp_path, CONFIGS["llama, tied"]), device=CPU)
    linears = target_linears(model, ["q_proj", "down_proj"])
    shapes = {name: linear.weight.shape for name, linear in linears.items()}
    factors = {name: Factors(torch.randn(out, 3), torch.randn(3, inner)) for name, (out, inner) in shapes.items()}
    ids, mask = windows()
    with torch.no_grad():
        with with_adapter(linears, factors):
            ours = model(input_ids=ids, attention_mask=mask.long()).logits
        untouched = model(input_ids=ids, attention_mask=mask.long()).logits
        live = get_peft_model(model, LoraConfig(r=3, lora_alpha=3, target_modules=list(factors)))
        for name, f in factors.items():
            layer = live.get_submodule(f"base_model.model.{name}")
            layer.lora_A["default"].weight.copy_(f.B)
            layer.lora_B["default"].weight.copy_(f.A)
        assert torch.equal(ours, live(input_ids=ids, attention_mask=mask.long()).logits)
    assert not torch.equal(ours, untouched)
