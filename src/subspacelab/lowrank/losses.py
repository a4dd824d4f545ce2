"""What a network is trained on: the error of A @ B, small B, and A with orthogonal columns."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def size_of_b(b: Float[Tensor, "batch rank dim"]) -> Float[Tensor, ""]:
    """mean(B^2)."""
    return b.square().mean()


def orthogonality_of_a(a: Float[Tensor, "batch tokens rank"]) -> Float[Tensor, ""]:
    """Mean over the batch of ||A_n^T A_n - I||_F^2 / rank^2, A_n = A with columns of length 1 (0 stays 0)."""
    columns = F.normalize(a, dim=1)
    gram = columns.mT @ columns
    eye = torch.eye(gram.shape[-1], device=a.device, dtype=a.dtype)
    return (gram - eye).square().mean()
