"""Measures of a singular spectrum: how far two differ, how many directions one has."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from subspacelab.linalg.moments import gram


def normalised_spectral_shift(sa: Float[Tensor, " r"], sb: Float[Tensor, " r"]) -> float:
    """||sb - sa||_2 / ||sa||_2 of two descending spectra (2511.08567, section 4.1).

    0 for equal spectra, infinite where only `sa` is zero.
    """
    shift = torch.linalg.vector_norm(sb.double() - sa.double()).item()
    size = torch.linalg.vector_norm(sa.double()).item()
    return 0.0 if shift == 0 else shift / size if size > 0 else math.inf


def stable_rank(w: Float[Tensor, "m n"]) -> float:
    """||W||_F^2 / ||W||_2^2, both from the float64 Gram matrix of the short side; 0 for W = 0 (2606.07082)."""
    g = gram(w, "right" if w.shape[0] >= w.shape[1] else "left")
    largest = torch.linalg.eigvalsh(g)[-1].item()
    return g.trace().item() / largest if largest > 0 else 0.0


def spectral_gap(s: Float[Tensor, " r"], k: int) -> float:
    """sigma_k / sigma_(k+1), counting from 1; infinite where sigma_(k+1) is absent or 0.

    Near 1 the leading-k subspace is hardly determined. Raises ValueError unless 1 <= k <= len(s).
    """
    if not 1 <= k <= len(s):
        raise ValueError(f"spectral gap at k = {k} of {len(s)} singular values: choose 1 <= k <= {len(s)}")
    if k == len(s) or s[k] == 0:
        return math.inf
    return s[k - 1].item() / s[k].item()
