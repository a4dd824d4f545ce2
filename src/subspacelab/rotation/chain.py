"""Three decomposed checkpoints of one model, matched by canonical names, and one weight of each."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from subspacelab.core.files import seen_from
from subspacelab.linalg.moments import chunk_rows
from subspacelab.linalg.svd import SVD
from subspacelab.rotation.factors import Decomposition, read_decomposition

STORAGE = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Weight:
    """A weight as its factors and, where they are complete, as a matrix."""

    svd: SVD
    """U [m, r], S [r], Vh [r, n]."""
    dense: Float[Tensor, "m n"] | None
    """The stored entries; None where the factors keep only the leading triples."""

    @cached_property
    def noise(self) -> Float[Tensor, "m n"]:
        """How far an entry of `dense` may be from the stored one, for the factors are float32; to the 0.4 % of bf16.

        U, S and Vh are rounded by 2^-24 each, and the errors of the terms U_ik S_k V_kj add up by chance over k: the
        difference of two such sums has a deviation of 1 to 1.1 2^-24 (sum of the squared terms)^(1/2), of which twice 4
        are allowed here: 3e-7 of a typical entry, where a step of bf16 is 4e-3 of its own. float32 storage rounds the
        sum once more, and the decomposition in float64 by n eps s_1.
        """
        assert self.dense is not None
        rounding, rows = 2**-24, chunk_rows(self.dense)
        right = (self.svd.Vh * (4 * rounding * self.svd.S)[:, None]).square()
        least = len(self.svd.S) * torch.finfo(torch.float64).eps * self.svd.S[0].item()
        noise = torch.empty(self.dense.shape, dtype=torch.bfloat16, device=self.dense.device)
        for out, u, w in zip(*(t.split(rows) for t in (noise, self.svd.U, self.dense)), strict=True):
            out.copy_((u.square().float() @ right.float()).sqrt_().add_(rounding * w.abs().float()).add_(least))
        return noise

    @property
    def V(self) -> Float[Tensor, "n r"]:
        """Right singular vectors as columns."""
        return self.svd.Vh.T

    def basis(self, side: str) -> Float[Tensor, "long r"]:
        """Singular vectors of a side, "U" or "Vh", as columns."""
        return self.svd.U if side == "U" else self.V


def to_device(svd: SVD, device: torch.device) -> SVD:
    """The same factors on `device`."""
    return SVD(svd.U.to(device), svd.S.to(device), svd.Vh.to(device), svd.method)


def recover_entries(svd: SVD, storage_dtype: str) -> Float[Tensor, "m n"]:
    """U diag(S) Vh in float64, rounded to the type the weight was stored in.

    Float32 factors are some 1e-8 of a typical entry off, a bf16 step is 4e-3 of an entry: rounding gives every bf16
    or fp16 entry back but those more than about 1e5 times smaller than is typical. In float32 storage the 1e-8 stays.
    """
    dtype = STORAGE[storage_dtype]
    scaled = svd.S.double()[:, None] * svd.Vh.double()
    w = torch.empty(svd.U.shape[0], svd.Vh.shape[1], dtype=dtype, device=svd.U.device)
    rows = chunk_rows(w)
    for out, u in zip(w.split(rows), svd.U.split(rows), strict=True):
        out.copy_(u.double() @ scaled)
    return w


def subtract(b: Weight, a: Weight) -> Float[Tensor, "m n"]:
    """B - A of the entries in float32, exactly 0 where two sets of float32 factors cannot tell an entry from equal."""
    if a.dense is None or b.dense is None:
        raise ValueError("factors that keep only the leading triples do not give the entries back")
    update = torch.empty(a.dense.shape, dtype=torch.float32, device=a.dense.device)
    parts = (t.split(chunk_rows(update)) for t in (update, b.dense, a.dense, b.noise, a.noise))
    for out, y, x, noise_y, noise_x in zip(*parts, strict=True):
        moved = y.float() - x.float()  # exact for neighbouring bf16, fp16 or fp32 entries (Sterbenz)
        out.copy_(torch.where(moved.abs() <= noise_y.float() + noise_x.float(), 0, moved))
    return update


ROLES = ("base", "stage1", "stage2")


@dataclass(frozen=True)
class Chain:
    """base -> stage 1 -> stage 2."""

    checkpoints: tuple[Decomposition, Decomposition, Decomposition]
    """The three, in order."""
    names: list[str]
    """Canonical names of the weights that all three have in one shape and rank, sorted."""
    unmatched: dict[str, str]
    """Canonical name of each other weight, with the reason."""

    @property
    def sources(self) -> dict[str, dict[str, Any]]:
        """Role to reference and revision."""
        return {role: c.source for role, c in zip(ROLES, self.checkpoints, strict=True)}

    def places(self, beside: Path) -> dict[str, str]:
        """Role to what it is and where, seen from `beside`: two sources of one name are two."""
        return {
            role: f"{seen_from(beside, c.folder)} of {c.source.get('reference')}"
            + (f"@{revision}" if (revision := c.source.get("revision")) else "")
            for role, c in zip(ROLES, self.checkpoints, strict=True)
        }

    def shape(self, name: str) -> tuple[int, int]:
        """Shape of a weight as a matrix."""
        return self.checkpoints[0].weights[name].matrix_shape

    def is_full(self, name: str) -> bool:
        """Whether all singular triples of a weight were kept."""
        return self.checkpoints[0].weights[name].is_full

    def storage(self, name: str) -> tuple[str, str, str]:
        """The types that a weight is stored in, as safetensors names them."""
        base, stage1, stage2 = (checkpoint.weights[name].storage_dtype for checkpoint in self.checkpoints)
        return base, stage1, stage2

    def read(self, name: str, device: torch.device) -> tuple[Weight, Weight, Weight]:
        """One weight of the three checkpoints, with its entries where the factors are complete.

        Checkpoints that store the same bytes share one set of factors, so that what did not move is exactly equal.
        """
        digests = [checkpoint.weights[name].source_digest for checkpoint in self.checkpoints]
        read = {d: _read_weight(c, name, device) for d, c in dict(zip(digests, self.checkpoints, strict=True)).items()}
        base, stage1, stage2 = (read[digest] for digest in digests)
        return base, stage1, stage2


def _read_weight(checkpoint: Decomposition, name: str, device: torch.device) -> Weight:
    record = checkpoint.weights[name]
    svd = to_device(checkpoint.read(name), device)
    return Weight(svd, recover_entries(svd, record.storage_dtype) if record.is_full else None)


def open_chain(base_dir: Path, stage1_dir: Path, stage2_dir: Path) -> Chain:
    """Opens three decomposed folders; a ValueError says which is none, or that they share no weight."""
    base, stage1, stage2 = (read_decomposition(folder) for folder in (base_dir, stage1_dir, stage2_dir))
    checkpoints = (base, stage1, stage2)
    unmatched = {}
    names = []
    for name in sorted({name for checkpoint in checkpoints for name in checkpoint.weights}):
        reason = _mismatch(name, checkpoints)
        if reason is None:
            names.append(name)
        else:
            unmatched[name] = reason
    if not names:
        example = next(iter(unmatched.items()), None)
        raise ValueError(f"{base_dir}, {stage1_dir} and {stage2_dir} share no weight of one shape and rank ({example})")
    return Chain(checkpoints, names, unmatched)


def _mismatch(name: str, checkpoints: tuple[Decomposition, ...]) -> str | None:
    absent = [role for role, c in zip(ROLES, checkpoints, strict=True) if name not in c.weights]
    if absent:
        return f"absent in {' and '.join(absent)}"
    records = [c.weights[name] for c in checkpoints]
    if len({record.original_shape for record in records}) > 1:
        return f"shapes differ: {', '.join(str(list(record.original_shape)) for record in records)}"
    if len({record.rank for record in records}) > 1:
        return f"ranks differ: {', '.join(str(record.rank) for record in records)}"
    return None
