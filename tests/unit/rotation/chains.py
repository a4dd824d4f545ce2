"""Small chains base -> stage 1 -> stage 2 for the tests of rotation."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from tests.tiny import LAYOUTS, tiny_qwen_vl_tensors, write_tiny_qwen_vl
from torch import Tensor

from subspacelab.checkpoints import resolve_reference
from subspacelab.rotation.decomposition import decompose

NAMES = ("base", "rl_stage1", "rl_stage2")
# Tall, wide and square weights, in both towers and outside the layers: what a test of the comparison needs.
SMALL = r"(qkv|[qv]_proj|merger\.mlp\.2|patch_embed\.proj|layers\.\d\.mlp\.up_proj)\.weight"


def chain_tensors(
    *, seed: int = 0, scales: Sequence[float] = (0.03, 0.02), dtype: torch.dtype = torch.float32
) -> list[dict[str, Tensor]]:
    """Three checkpoints by legacy names; each stage adds noise of a share of every matrix's norm."""
    generator = torch.Generator().manual_seed(seed + 1)
    chain = [tiny_qwen_vl_tensors(seed=seed)]
    for scale in scales:
        chain.append({name: _moved(t, scale, generator) for name, t in chain[-1].items()})
    return [{name: t.to(dtype) for name, t in tensors.items()} for tensors in chain]


def _moved(tensor: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    if tensor.ndim < 2:
        return tensor
    noise = torch.randn(tensor.shape, generator=generator)
    return tensor + noise * (scale * tensor.norm() / noise.norm())


def decompose_chain(
    root: Path,
    chain: Sequence[Mapping[str, Tensor]],
    *,
    layouts: Sequence[str] = (LAYOUTS[0],) * 3,
    rank: int | None = None,
    include: str | None = SMALL,
    device: str = "cpu",
) -> tuple[Path, Path, Path]:
    """Writes the checkpoints under `root` and decomposes them; returns the decomposed folders."""
    for name, tensors, layout in zip(NAMES, chain, layouts, strict=True):
        dtype = next(iter(tensors.values())).dtype
        write_tiny_qwen_vl(root / "checkpoints" / name, layout=layout, dtype=dtype, tensors=tensors)
        source = resolve_reference(str(root / "checkpoints" / name))
        decompose(source, root / "svd", rank=rank, include=include, device=device)
    base, stage1, stage2 = (root / "svd" / name for name in NAMES)
    return base, stage1, stage2
