"""FP8 weights: the scale that belongs to each weight, and dequantisation."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from subspacelab.checkpoints.tensors import FLOATING, FP8, TensorInfo
from subspacelab.core.errors import CheckpointError

SCALE_SUFFIXES = ("_scale_inv", "_scale")
"""Suffixes after a weight's name. Both scales are factors, w = code * scale, in spite of the "inv" in one name."""
SCALE_DTYPES = (*FLOATING, "F8_E8M0")
"""Allowed dtypes of a scale; the last one has only powers of two (UE8M0)."""
SECOND_SUFFIXES = ("_scale_2", "_zero_point", "_shape")
"""Suffixes of formats that need a second scale."""
BLOCK = (128, 128)
"""Rows and columns that share a factor unless config.json gives other sizes (DeepSeek-V3, arXiv 2412.19437, 3.3.2)."""
CHUNK_ENTRIES = 1 << 22


@dataclass(frozen=True)
class Scale:
    """The scale of one FP8 weight, arranged along the weight's axes."""

    info: TensorInfo
    """The tensor that holds the scale."""
    shape: tuple[int, ...]
    """Its shape with as many axes as the weight: a scalar is [1, 1], a vector over the rows is [rows, 1]."""
    block: tuple[int, ...]
    """Number of entries along each axis of the weight that share a factor; the last block may be smaller."""

    def rows(self, start: int, stop: int) -> tuple[int, int]:
        """The rows of the scale that belong to rows start:stop of the weight."""
        return start // self.block[0], -(-stop // self.block[0])


def scale_of(name: str, infos: Mapping[str, TensorInfo], config: Mapping[str, Any]) -> Scale | None:
    """The scale of `name`; None if the tensor is not stored in FP8, or if its format needs more than one scale.

    Supported: one scale per block, per channel, per tensor and, for fused experts, per expert. Along each axis the
    scale has one entry, one per entry of the weight, or one per block. CheckpointError, naming both tensors, for any
    other shape or dtype of the scale.
    """
    info = infos[name]
    if info.dtype not in FP8 or len(info.shape) < 2 or any(name + suffix in infos for suffix in SECOND_SUFFIXES):
        return None
    scales = [infos[name + suffix] for suffix in SCALE_SUFFIXES if name + suffix in infos]
    if len(scales) != 1:
        return None
    found = scales[0]
    if found.dtype not in SCALE_DTYPES:
        raise CheckpointError(
            f"{found.name}: a scale of type {found.dtype}, needed is one of {', '.join(SCALE_DTYPES)}"
        )
    sizes, block = info.shape, _block_of(config)
    steps = (*(1 for _ in sizes[:-2]), *block)
    shape = _along_axes(found.shape, sizes)
    blocks = tuple(-(-size // step) for size, step in zip(sizes, steps, strict=True))
    if not _fits(shape, sizes, blocks):
        raise CheckpointError(
            f"{found.name}: a scale of shape {list(found.shape)} for {name} of shape {list(sizes)}; fitting are "
            f"{list(blocks)} (blocks of {block[0]} x {block[1]}), {[*sizes[:-1], 1]} and [1]; download both again"
        )
    shared = (max(1, size) if s == 1 else 1 if s == size else n for s, size, n in zip(shape, sizes, steps, strict=True))
    return Scale(found, shape, tuple(shared))


def _fits(shape: tuple[int, ...], sizes: tuple[int, ...], blocks: tuple[int, ...]) -> bool:
    """Whether every axis has one entry or one per entry of the weight, or else every axis one per block or entry."""
    if len(shape) != len(sizes):
        return False
    if all(s in (1, size) for s, size in zip(shape, sizes, strict=True)):
        return True
    return all(s in (num, size) for s, num, size in zip(shape, blocks, sizes, strict=True))


def _along_axes(shape: tuple[int, ...], sizes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a scale with as many axes as there are `sizes`: a vector lies along the first axis."""
    if prod(shape) == 1:
        return (1,) * len(sizes)
    return (*shape, *(1,) * (len(sizes) - 1)) if len(shape) == 1 else shape


def is_scale(name: str, infos: Mapping[str, TensorInfo]) -> bool:
    """Whether `name` is the scale of a quantised weight."""
    weights = (name.removesuffix(suffix) for suffix in SCALE_SUFFIXES if name.endswith(suffix))
    return any(weight in infos and not infos[weight].is_floating for weight in weights)


def _block_of(config: Mapping[str, Any]) -> tuple[int, int]:
    """Block sizes from `weight_block_size` of config.json, or from `block_structure` of its compressed-tensors section.

    CheckpointError unless they are two sizes.
    """
    for found in _blocks_said(config):
        if not (isinstance(found, list) and len(found) == 2 and all(isinstance(n, int) and n > 0 for n in found)):
            raise CheckpointError(f"config.json: a block of FP8 weights is {found!r}, not two sizes; restore it")
        return found[0], found[1]
    return BLOCK


def _blocks_said(config: Mapping[str, Any]) -> Iterator[Any]:
    for part in (config, config.get("text_config")):
        said = part.get("quantization_config") if isinstance(part, Mapping) else None
        if isinstance(said, Mapping):
            groups = said.get("config_groups")
            groups = groups.values() if isinstance(groups, Mapping) else ()
            weights = [group.get("weights") for group in groups if isinstance(group, Mapping)]
            blocks = [w.get("block_structure") for w in weights if isinstance(w, Mapping)]
            yield from (block for block in (said.get("weight_block_size"), *blocks) if block is not None)


def dequantise(
    codes: Float[Tensor, "rows ..."], factors: Float[Tensor, "blocks ..."], block: tuple[int, ...], skipped: int = 0
) -> Float[Tensor, "rows ..."]:
    """code * scale in float32; its rounding of 2^-24 is negligible beside an FP8 step of 2^-4 or more.

    `factors` [blocks, ...] has as many axes as `codes`. `codes` starts `skipped` rows into the first block of
    `factors`.
    """
    factors = factors.float()
    weights = torch.empty(codes.shape, dtype=torch.float32, device=codes.device)
    num_rows = max(1, CHUNK_ENTRIES // max(1, codes[:1].numel()))
    for start in range(0, len(codes), num_rows):
        out, chunk = (tensor[start : start + num_rows] for tensor in (weights, codes))
        expanded = factors[torch.arange(start + skipped, start + skipped + len(chunk)) // block[0]]
        for axis in range(1, codes.ndim):
            if expanded.shape[axis] > 1:
                expanded = expanded.repeat_interleave(block[axis], axis).narrow(axis, 0, chunk.shape[axis])
        torch.mul(chunk.float(), expanded, out=out)
    return weights
