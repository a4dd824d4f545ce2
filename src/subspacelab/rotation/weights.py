"""One weight of a checkpoint: its factors, and its stored entries had back from them."""

from dataclasses import dataclass

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

    @property
    def V(self) -> Float[Tensor, "n r"]:
        """Right singular vectors as columns."""
        return self.svd.Vh.T


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
