"""Facts about a stored tensor that need no data: its canonical name, shape, dtype, size, shard."""

import hashlib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from subspacelab.core.errors import CheckpointError

DTYPE_CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.complex64: "C64",
}
"""torch dtype -> its name in safetensors."""

FLOATING = ("F64", "F32", "F16", "BF16")
"""Stored dtypes whose entries are the weights themselves, without a separate scale."""

SIGNIFICANT_BITS = {"F64": 53, "F32": 24, "F16": 11, "BF16": 8, "F8_E4M3": 4, "F8_E5M2": 3}
"""dtype -> significant bits of an entry, the leading bit included: one step is 2^(1 - bits) of the entry's power of
two."""

FP8 = ("F8_E4M3", "F8_E5M2")
"""Stored dtypes whose entries must be multiplied by a scale."""

EXPERTS = re.compile(r"experts|moe")
"""Parts of the names of tensors that may hold all experts of a layer (GraniteMoE and JetMoE use only `moe`)."""


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a checkpoint, as its file's header describes it."""

    name: str
    """The key in the file, unchanged."""
    shape: tuple[int, ...]
    """The stored shape; () for a scalar."""
    dtype: str
    """The stored dtype as safetensors names it, e.g. "BF16"."""
    nbytes: int
    """Size in the file, in bytes."""
    shard: str
    """Name of the file that holds the tensor."""

    @property
    def num_entries(self) -> int:
        """Number of entries, the product of the shape."""
        return math.prod(self.shape)

    @property
    def is_floating(self) -> bool:
        """Whether the entries are floating-point numbers that need no scale (F64, F32, F16, BF16)."""
        return self.dtype in FLOATING


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """[shape[0], prod(rest)]: a weight of two or more dimensions as a matrix; ValueError for fewer dimensions."""
    if len(shape) < 2:
        raise CheckpointError(f"shape {list(shape)} is no matrix; two or more dimensions are needed")
    return shape[0], math.prod(shape[1:])


def num_experts(name: str, shape: Sequence[int]) -> int | None:
    """Number of matrices in a fused tensor [experts, a, b], one per expert; None for any other tensor."""
    return shape[0] if len(shape) == 3 and EXPERTS.search(name) else None


def holds_expert_biases(name: str, shape: Sequence[int]) -> bool:
    """Whether the tensor [experts, n] holds a bias vector per expert rather than a matrix."""
    return len(shape) == 2 and name.endswith("bias") and EXPERTS.search(name) is not None


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 of dtype, shape and bytes, in hexadecimal: equal contents in any container have equal digests."""
    return digest_of_pieces(dtype_code(tensor.dtype), tensor.shape, [tensor])


def digest_of_pieces(dtype: str, shape: Sequence[int], pieces: Iterable[Tensor]) -> str:
    """`tensor_digest` of a tensor that is read in pieces along its first axis."""
    digest = hashlib.sha256(f"{dtype} {list(shape)}\n".encode())
    for piece in pieces:
        digest.update(piece.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def dtype_code(dtype: torch.dtype) -> str:
    """The name of a torch dtype in safetensors; torch's own name in capitals if safetensors has none."""
    return DTYPE_CODES.get(dtype, str(dtype).removeprefix("torch.").upper())


WRAPPERS = (
    *("module", "_orig_mod", "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module", "_forward_module"),
    *("base_layer", "original_module", r"base_model\.model"),
)
"""Name parts added by data-parallel training, torch.compile, FSDP, activation checkpointing, Lightning and PEFT."""

LLM_BLOCK = (
    "self_attn|linear_attn|block_sparse_moe|mlp(?!\\.fc)|(?:input|(?:pre|post)_(?:attention|feedforward))_layernorm"
)
RULES = (
    (re.compile(rf"(?<![^.])(?:{'|'.join(WRAPPERS)})\."), ""),
    (re.compile(r"^model\.visual\."), "visual."),
    (re.compile(r"^model\.(?:language_model\.)+"), "model."),
    (re.compile(r"^language_model\.(?!model\.|lm_head)"), "model."),
    (re.compile(rf"^(?=embed_tokens\.|norm\.|layers\.\d+\.(?:{LLM_BLOCK})\.)"), "model."),
)
"""Replacements: wrappers at any position, the three layouts that differ from the hub's, a language model without
head."""

ADAPTER = re.compile(r"(?:^|\.)(?:lora_\w+|base_layer|modules_to_save|original_module)(?:\.|$)")


def canonical_name(raw: str) -> str:
    """The hub's name of a weight: `model.visual.x` -> `visual.x`, `model.language_model.x` -> `model.x`.

    All layouts of one model have the same canonical names; wrappers are removed; applying it twice changes nothing. It
    is used to compare checkpoints and to match patterns. Files are read by their raw names.
    """
    before, name = "", raw
    while name != before:
        before = name
        for pattern, replacement in RULES:
            name = pattern.sub(replacement, name)
    return name


def canonical_keys(raw: Iterable[str]) -> dict[str, str]:
    """Canonical name -> name in the file; ValueError, naming both, if two names have one canonical name."""
    keys: dict[str, str] = {}
    for key in raw:
        name = canonical_name(key)
        if name in keys:
            raise CheckpointError(
                f"{keys[name]} and {key}: two tensors for one weight, {name}; keep the one that counts"
            )
        keys[name] = key
    return keys


def unmerged_adapter(names: Iterable[str]) -> str | None:
    """The first name by which PEFT marks an adapter that is not merged into the model; None without one."""
    return next((name for name in names if ADAPTER.search(name)), None)
