"""What is known of a stored tensor without reading it: name, shape, dtype, size, shard."""

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
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.complex64: "C64",
}
"""torch dtype -> the name safetensors gives it."""

FLOATING = ("F64", "F32", "F16", "BF16")
"""The stored dtypes whose entries are the weights themselves, without a scale elsewhere."""

EXPERTS = re.compile(r"experts|moe")
"""Within the names of tensors that may hold all experts of a layer (GraniteMoE's and JetMoE's say only `moe`)."""


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
    """Bytes in the file."""
    shard: str
    """Name of the file that holds it."""

    @property
    def num_entries(self) -> int:
        """Number of entries, the product of the shape."""
        return math.prod(self.shape)

    @property
    def is_floating(self) -> bool:
        """Whether the entries are floating numbers that mean themselves (F64, F32, F16, BF16)."""
        return self.dtype in FLOATING


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """The matrix a weight of two or more dimensions is read as, [shape[0], prod(rest)]; else ValueError."""
    if len(shape) < 2:
        raise CheckpointError(f"shape {list(shape)} is no matrix; two or more dimensions are needed")
    return shape[0], math.prod(shape[1:])


def num_experts(name: str, shape: Sequence[int]) -> int | None:
    """How many matrices a fused tensor [experts, a, b] holds, one per expert; None for any other tensor."""
    return shape[0] if len(shape) == 3 and EXPERTS.search(name) else None


def holds_expert_biases(name: str, shape: Sequence[int]) -> bool:
    """Whether [experts, n] is a vector per expert, and no matrix."""
    return len(shape) == 2 and name.endswith("bias") and EXPERTS.search(name) is not None


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 of dtype, shape and bytes, in hexadecimal: equal contents in any container are equal digests."""
    return digest_of_pieces(dtype_code(tensor.dtype), tensor.shape, [tensor])


def digest_of_pieces(dtype: str, shape: Sequence[int], pieces: Iterable[Tensor]) -> str:
    """`tensor_digest` of a tensor that is read in pieces along its first axis."""
    digest = hashlib.sha256(f"{dtype} {list(shape)}\n".encode())
    for piece in pieces:
        digest.update(piece.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def dtype_code(dtype: torch.dtype) -> str:
    """safetensors' name of a torch dtype; torch's own in capitals where safetensors has none."""
    return DTYPE_CODES.get(dtype, str(dtype).removeprefix("torch.").upper())
