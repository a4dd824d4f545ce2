"""How well a decomposition holds: its product against the matrix, its bases against orthonormality."""

import torch
from jaxtyping import Float
from torch import Tensor

from subspacelab.linalg.gram import chunk_rows, gram
from subspacelab.linalg.svd import SVD


def reconstruction_error(w: Float[Tensor, "m n"], svd: SVD) -> float:
    """||W - U diag(S) Vh||_F / ||W||_F in float64, row by row chunk; 0 for W = 0 reproduced exactly."""
    scaled = svd.S.double()[:, None] * svd.Vh.double()
    rows = chunk_rows(w)
    wrong = size = 0.0
    for chunk, u in zip(w.split(rows), svd.U.split(rows), strict=True):
        c = chunk.to(scaled.device).double()
        size += c.square().sum().item()
        wrong += torch.addmm(c, u.double(), scaled, alpha=-1).square().sum().item()
    return (wrong / size) ** 0.5 if wrong > 0 else 0.0


def orthogonality_error(svd: SVD) -> float:
    """max(max |U^T U - I|, max |Vh Vh^T - I|) in float64."""
    return max(_deviation(gram(svd.U)), _deviation(gram(svd.Vh, "left")))


def _deviation(g: Float[Tensor, "r r"]) -> float:
    g.diagonal().sub_(1)
    return g.abs().max().item()
