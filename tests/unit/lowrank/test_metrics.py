"""The terms of the loss against plain loops."""

import numpy as np
import pytest
import torch
from torch import Tensor

from subspacelab.lowrank.metrics import orthogonality_of_a, size_of_b


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_size_of_b_against_a_plain_loop() -> None:
    b = random(3, 4, 5)
    total = sum(b[i, j, k].item() ** 2 for i, j, k in np.ndindex(3, 4, 5))
    assert size_of_b(b).item() == pytest.approx(total / 60, rel=1e-12)  # float64


def test_orthogonality_of_a_against_a_plain_loop() -> None:
    a = random(3, 6, 4)
    total = 0.0
    for matrix in a.numpy():
        for i, j in np.ndindex(4, 4):
            one, other = matrix[:, i], matrix[:, j]
            cosine = (one @ other) / np.sqrt((one @ one) * (other @ other))
            total += (cosine - (i == j)) ** 2
    assert orthogonality_of_a(a).item() == pytest.approx(total / (3 * 4**2), rel=1e-12)  # float64


def test_orthonormal_columns_of_any_length_cost_nothing() -> None:
    q = torch.linalg.qr(random(2, 6, 4)).Q
    assert orthogonality_of_a(q).item() < 1e-30  # squares of float64 rounding
    assert orthogonality_of_a(q * torch.tensor([1.0, 7.0, 0.1, 3.0])).item() < 1e-30


def test_equal_columns_cost_as_much_as_can_be() -> None:
    a = random(1, 6, 1).expand(1, 6, 4)
    assert orthogonality_of_a(a).item() == pytest.approx(12 / 16, rel=1e-12)  # 12 of 16 entries are 1, not 0


def test_a_column_of_zeros_stays_finite_with_its_gradient() -> None:
    a = random(2, 6, 4).float()
    a[:, :, 1] = 0
    a.requires_grad_(True)
    loss = orthogonality_of_a(a)
    loss.backward()
    assert torch.isfinite(loss)
    assert a.grad is not None
    assert torch.isfinite(a.grad).all()


def test_more_columns_than_rows_cannot_be_orthogonal() -> None:
    assert orthogonality_of_a(random(2, 3, 5)).item() > 0
