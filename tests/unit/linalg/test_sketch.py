import pytest
import torch
from tests.unit.linalg.matrices import gaussian, planted
from torch import Tensor

from subspacelab.linalg.token_svd import project, sketch_basis, token_svd

TOKENS, DIM, RANK = 32, 48, 6
DECAYING = torch.stack([planted(TOKENS, DIM, 0.85 ** torch.arange(TOKENS), seed) for seed in range(4)])


def _cosines(x: Tensor, basis: Tensor) -> Tensor:
    return project(x, basis).norm(dim=(1, 2)) / x.norm(dim=(1, 2))


@pytest.mark.parametrize("power_steps", [0, 1, 3])
@pytest.mark.parametrize("k", [1, RANK, TOKENS])
def test_columns_are_orthonormal(power_steps: int, k: int) -> None:
    q = sketch_basis(DECAYING, gaussian(DIM, k), power_steps)
    assert q.shape == (4, TOKENS, k)
    # Householder QR: a few eps of float64.
    gram = q.mT @ q
    torch.testing.assert_close(gram, torch.eye(k, dtype=torch.float64).expand_as(gram), rtol=0, atol=1e-13)


@pytest.mark.parametrize("power_steps", [0, 2])
def test_the_true_right_basis_reaches_the_cosine_of_the_svd(power_steps: int) -> None:
    x = DECAYING[:1]
    omega = torch.linalg.svd(x[0]).Vh[:RANK].T
    reached = _cosines(x, sketch_basis(x, omega, power_steps))
    # The same subspace; its energy is known to eps times the condition 0.85^-6 of the kept part.
    torch.testing.assert_close(reached, token_svd(x).cosines()[:, RANK - 1], rtol=0, atol=1e-12)


def test_power_steps_bring_a_random_sketch_nearer_to_the_svd() -> None:
    for seed in range(5):
        omega = gaussian(DIM, RANK, seed)
        reached = torch.stack([_cosines(DECAYING, sketch_basis(DECAYING, omega, steps)) for steps in range(5)])
        assert (reached.diff(dim=0) > 0).all()
        best = token_svd(DECAYING).cosines()[:, RANK - 1]
        # Eckart-Young: none is better, but for rounding.
        assert (reached <= best + 1e-12).all()
        assert (best - reached[-1] < 0.1 * (best - reached[0])).all()


def test_a_sketch_as_wide_as_the_rank_of_x_is_exact() -> None:
    x = planted(TOKENS, DIM, torch.tensor([3.0, 2, 1]))[None]
    q = sketch_basis(x, gaussian(DIM, 3), 0)
    # X Omega has the range of X; the condition of a 3 x 3 Gaussian is some 10, so 1e-12 leaves a margin.
    torch.testing.assert_close(project(x, q), x, rtol=0, atol=1e-12)


def test_steps_do_not_lose_weak_directions_to_the_strongest() -> None:
    x = planted(TOKENS, DIM, torch.logspace(0, -5, RANK, dtype=torch.float64))[None]
    q = sketch_basis(x, gaussian(DIM, RANK), 4)
    # Without orthonormalisation (1e-5)^9 would drown in rounding; with it the weakest keeps 1e-16 / 1e-5.
    torch.testing.assert_close(project(x, q), x, rtol=0, atol=1e-10)


@pytest.mark.parametrize("power_steps", [0, 2])
def test_the_gradient_of_the_projection_is_right(power_steps: int) -> None:
    x = torch.stack([gaussian(5, 7, 1), gaussian(5, 7, 2)])
    omega = gaussian(7, 3, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda o: sketch_basis(x, o, power_steps), (omega,))
    assert torch.autograd.gradcheck(lambda o: project(x, sketch_basis(x, o, power_steps)), (omega,))
