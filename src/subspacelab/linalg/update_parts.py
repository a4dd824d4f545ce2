"""Parts of a weight's update: its best approximation of rank k, the rest, new directions, new singular values."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from subspacelab.linalg.moments import chunk_rows
from subspacelab.linalg.svd import SVD, svd

UpdatePart = Literal["leading", "trailing", "rotation", "spectrum"]


def match_pairs(a: SVD, b: SVD) -> Float[Tensor, "r r"]:
    """The orthogonal Q, float64, that matches singular pairs of `b` to those of `a`: U_b Q^T, V_b Q^T beside U_a, V_a.

    Q is the polar factor of the overlap of pairs, O_ij = <u_i^a, u_j^b> <v_i^a, v_j^b>. O is the identity for the same
    pairs in the same order, and a permutation if two pairs have changed places. A small update does that when the
    singular values have gaps of 1.001, so indices alone cannot match pairs. A small rotation, equal on the left and
    right, leaves O symmetric and positive, so Q is the identity and the rotation stays visible. The overlaps <u_i^a,
    u_j^b> alone would not work: for a square weight they form an orthogonal matrix, and U_b Q^T = U_a for any two
    weights.
    """
    overlap = (a.U.double().T @ b.U.double()) * (a.Vh.double() @ b.Vh.double().T)
    p, _, qh = torch.linalg.svd(overlap)
    return p @ qh


@dataclass(frozen=True)
class UpdateParts:
    """The update D = W_b - W_a of a weight; its parts are matrices that can be added to W_a."""

    before: Float[Tensor, "m n"]
    """W_a."""
    after: Float[Tensor, "m n"]
    """W_b."""

    @cached_property
    def whole(self) -> Float[Tensor, "m n"]:
        """D, in float64 if an operand is float64, else in float32."""
        dtype = torch.float64 if torch.float64 in (self.before.dtype, self.after.dtype) else torch.float32
        return self.after.to(dtype) - self.before.to(dtype)

    @cached_property
    def factors(self) -> SVD:
        """The SVD of D."""
        return svd(self.whole)

    @cached_property
    def _ends(self) -> tuple[SVD, SVD, Float[Tensor, "r r"]]:
        before, after = svd(self.before), svd(self.after)
        return before, after, match_pairs(before, after)

    def part(self, part: UpdatePart, rank: int | None = None) -> Float[Tensor, "m n"]:
        """One part of D, float64 or float32.

        leading: sum of the `rank` leading terms s_i u_i v_i^T of D, its best approximation of that rank; trailing: the
        rest. With rank None, or at least min(m, n), leading is all of D and trailing is 0. rotation: U_b H V_b^T - W_a
        with H = Q^T diag(S_a) Q: the tuned directions with the base's singular values; spectrum: U_a H V_a^T - W_a with
        H = Q diag(S_b) Q^T: the base's directions with the tuned singular values; Q from `match_pairs`. Rotation and
        spectrum do not add up to D.
        """
        if part in ("leading", "trailing"):
            leading = self._leading(rank)
            return leading if part == "leading" else self.whole - leading
        if not self.whole.any():
            return self.whole
        before, after, q = self._ends
        if part == "rotation":
            return _rebuilt(after, q.T * before.S.double() @ q) - self.before
        return _rebuilt(before, q * after.S.double() @ q.T) - self.before

    def _leading(self, rank: int | None) -> Float[Tensor, "m n"]:
        if rank is None or rank >= min(self.whole.shape):
            return self.whole
        u, s, vh = self.factors.U[:, :rank], self.factors.S[:rank], self.factors.Vh[:rank]
        return ((u * s) @ vh).to(self.whole.dtype)


def _rebuilt(frame: SVD, middle: Float[Tensor, "r r"]) -> Float[Tensor, "m n"]:
    """U `middle` Vh in float64."""
    return frame.U.double() @ middle @ frame.Vh.double()


def add_scaled(
    w: Float[Tensor, "*shape"], update: Float[Tensor, "*shape"], scale: float, dtype: torch.dtype
) -> Float[Tensor, "*shape"]:
    """w + scale * update, computed in float64 in chunks of rows and rounded once to `dtype`."""
    total = torch.empty(w.shape, dtype=dtype, device=w.device)
    if w.ndim == 0:
        return total.copy_(w.double() + scale * update.double())
    rows = chunk_rows(w.flatten(1)) if w.ndim > 1 else max(1, len(w))
    for out, x, d in zip(total.split(rows), w.split(rows), update.split(rows), strict=True):
        out.copy_(x.double() + scale * d.double())
    return total
