"""One weight of a checkpoint: its factors, its stored entries had back from them, and what of it moved."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from subspacelab.linalg.gram import chunk_rows
from subspacelab.linalg.svd import SVD

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
