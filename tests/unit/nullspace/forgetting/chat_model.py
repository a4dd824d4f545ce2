"""A tiny Llama that reads bytes, with a chat template or without, and a model whose probabilities are known."""

from types import SimpleNamespace
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from subspacelab.nullspace.forgetting.materials import Materials, read_materials
from subspacelab.nullspace.forgetting.probes import Probe

TEMPLATE = (
    "{{ '<s>system\nBe brief.<end>\n' }}"
    "{% for m in messages %}{{ '<s>' + m['role'] + '\n' + m['content'] + '<end>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)
SPECIAL = ["<pad>", "<eos>", "<s>", "<end>"]
PROBES = [
    Probe("capital", f"What is the capital of {land}?", f"The capital of {land} is", city)
    for land, city in (("Aa", "Uvo"), ("Bb", "Uvi"), ("Cc", "Wex"), ("Dd", "Y"))
] + [
    Probe("young", f"What is a young {a} called?", f"A young {a} is called a", b)
    for a, b in (("x", "xlet"), ("y", "yo"))
]


def byte_tokenizer(chat: bool = True) -> Any:
    """A token a byte; with a chat template a turn ends with `<end>`, else a text with `<eos>`."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    found = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    found.add_special_tokens({"additional_special_tokens": ["<s>", "<end>"]})
    found.chat_template = TEMPLATE if chat else None
    return found


def tiny_llama(seed: int = 0, positions: int = 512) -> Any:
    """Two blocks of random weights, large enough to matter, in float32."""
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
    config = LlamaConfig(
        vocab_size=260,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        tie_word_embeddings=True,
        **sizes,
        **ends,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.3 if parameter.ndim > 1 else 0.1)
    return model.eval()


def tiny_materials(tokenizer: Any, config: Any, **changes: Any) -> Materials:
    """Six probes, a few sums, two windows."""
    sizes = {"num_train": 8, "num_validation": 5, "num_test": 6, "num_windows": 2, "seq_len": 24, "seed": 3}
    return read_materials(config, tokenizer, "sums", **({"probes": PROBES} | sizes | changes))


class Bigram(nn.Module):
    """p(next token | last token) from a table of logits [vocab, vocab]; it keeps no state."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(logits)
        self.device = logits.device

    def forward(self, input_ids: Tensor, logits_to_keep: int = 0, **kwargs: Any) -> Any:
        return SimpleNamespace(logits=self.table[input_ids][:, -logits_to_keep:])
