"""One weight of a checkpoint as its factors and entries, and the difference of two."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from subspacelab.checkpoints.tensors import FP8
from subspacelab.linalg.moments import chunk_rows
from subspacelab.linalg.subspaces import Span, span_of
from subspacelab.linalg.svd import SVD, num_tail, svd
from subspacelab.rotation.leading import leading_svd

STORAGE = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
STORAGE |= dict.fromkeys(FP8, torch.float32)  # which code times scale is computed in


@dataclass(frozen=True)
class Weight:
    """A weight as its factors and, if they are complete, as a matrix."""

    svd: SVD
    """U [m, r], S [r], Vh [r, n]; or only the leading triples."""
    dense: Float[Tensor, "m n"] | None
    """The entries; None if the factors on disk keep only the leading triples."""
    exact: bool = False
    """Whether `dense` holds the stored entries, rather than entries recovered from the factors."""
    spectrum: Float[Tensor, " r"] | None = None
    """All singular values, if `svd` holds only the leading triples of a weight whose entries are known."""
    digest: str = ""
    """Identifies the content of the weight (`Chain.digests`)."""
    bits: int = 0
    """Significant bits of the stored entries, if they are fewer than bf16's 8."""

    @classmethod
    def of(
        cls,
        w: Float[Tensor, "m n"],
        keep: int | None = None,
        *,
        exact: bool = False,
        entries: bool = True,
        digest: str = "",
        bits: int = 0,
    ) -> "Weight":
        """The decomposition of a matrix: its `keep` leading triples if they cost less than all; else, or for None, all.

        `entries`: keep them too.
        """
        dense = w if entries else None
        found = None if keep is None else leading_svd(w, keep)
        if found is None:
            return cls(svd(w), dense, exact, None, digest, bits)
        return cls(found.svd, dense, exact, found.spectrum, digest, bits)

    @property
    def S(self) -> Float[Tensor, " r"]:
        """All known singular values, descending."""
        return self.svd.S if self.spectrum is None else self.spectrum

    @property
    def is_partial(self) -> bool:
        """Whether only the leading triples were computed, although all could be."""
        return self.spectrum is not None

    @cached_property
    def noise(self) -> Float[Tensor, "m n"]:
        """Largest error of an entry of `dense` recovered from float32 factors, at most the 0.4 % of bf16.

        0 if the entries were read.

        U, S and Vh are rounded by 2^-24 each, and the errors of the terms U_ik S_k V_kj add up randomly over k: the
        difference of two such sums has a deviation of 1 to 1.1 2^-24 (sum of the squared terms)^(1/2). Twice 4
        deviations are allowed here: 3e-7 of a typical entry, while a step of bf16 is 4e-3 of its own entry. float32
        storage rounds the sum once more, and the decomposition in float64 adds n eps s_1.
        """
        assert self.dense is not None
        if self.exact:
            return torch.zeros((), dtype=torch.bfloat16, device=self.dense.device).expand(self.dense.shape)
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

    def span(self, side: str) -> Float[Tensor, "long r"] | Span | None:
        """The space of all singular vectors of a side, "U" or "Vh": by these vectors, or by the entries of W.

        None for the short side of a weight whose leading triples alone were computed: it spans everything. A weight
        with directions that its entries do not determine has all its vectors computed: the same seed completes them in
        every checkpoint, where rounding would tilt the space.
        """
        if not self.is_partial:
            return self.svd.U if side == "U" else self.V
        m, n = len(self.svd.U), self.svd.Vh.shape[1]
        return self._long_span if (m > n) == (side == "U") and m != n else None

    @cached_property
    def _long_span(self) -> Float[Tensor, "long r"] | Span:
        assert self.dense is not None
        tall = self.dense if self.dense.shape[0] > self.dense.shape[1] else self.dense.T
        return svd(tall).U if num_tail(self.S) else span_of(tall)


def to_device(svd: SVD, device: torch.device) -> SVD:
    """A copy on `device`."""
    return SVD(svd.U.to(device), svd.S.to(device), svd.Vh.to(device), svd.method)


def recover_entries(svd: SVD, storage_dtype: str) -> Float[Tensor, "m n"]:
    """U diag(S) Vh in float64, rounded to the dtype the weight was stored in.

    Float32 factors are wrong by about 1e-8 of a typical entry, a bf16 step is 4e-3 of an entry: rounding recovers every
    bf16 or fp16 entry, except entries about 1e5 times smaller than typical. In float32 storage the error of 1e-8
    remains.
    """
    dtype = STORAGE[storage_dtype]
    scaled = svd.S.double()[:, None] * svd.Vh.double()
    w = torch.empty(svd.U.shape[0], svd.Vh.shape[1], dtype=dtype, device=svd.U.device)
    rows = chunk_rows(w)
    for out, u in zip(w.split(rows), svd.U.split(rows), strict=True):
        out.copy_(u.double() @ scaled)
    return w


def subtract(b: Weight, a: Weight) -> Float[Tensor, "m n"]:
    """B - A of the entries in float32; exactly 0 if two sets of float32 factors cannot distinguish an entry from equal.

    Entries that were read as float64 are subtracted in float64.
    """
    if a.dense is None or b.dense is None:
        raise ValueError("factors that keep only the leading triples do not give the entries back")
    update = torch.empty(a.dense.shape, dtype=torch.float32, device=a.dense.device)
    wide = a.exact and b.exact and torch.float64 in (a.dense.dtype, b.dense.dtype)
    dtype = torch.float64 if wide else torch.float32
    parts = (t.split(chunk_rows(update)) for t in (update, b.dense, a.dense, b.noise, a.noise))
    for out, y, x, noise_y, noise_x in zip(*parts, strict=True):
        moved = y.to(dtype) - x.to(dtype)  # exact for neighbouring bf16, fp16 or fp32 entries (Sterbenz)
        out.copy_(torch.where(moved.abs() <= noise_y.float() + noise_x.float(), 0, moved))
    return update
