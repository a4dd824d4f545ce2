"""The range of a matrix by a sketch, sharpened by power steps."""

import torch
from jaxtyping import Float
from torch import Tensor


def sketch_basis(
    x: Float[Tensor, "batch tokens dim"], omega: Float[Tensor, "dim k"], power_steps: int
) -> Float[Tensor, "batch tokens k"]:
    """Orthonormal Q = orth((X X^T)^q X Omega), k <= min(tokens, dim); orthonormalised after every step.

    Halko, Martinsson & Tropp (arXiv 0909.4061), algorithm 4.4. Differentiable in `omega`, which can be trained
    (Indyk, Vakilian & Yuan, arXiv 1910.13984).
    """
    q = torch.linalg.qr(x @ omega).Q
    for _ in range(power_steps):
        q = torch.linalg.qr(x @ (x.mT @ q)).Q
    return q
