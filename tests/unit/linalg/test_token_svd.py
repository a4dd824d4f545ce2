import numpy as np
import pytest
import torch
from tests.unit.linalg.matrices import gaussian, planted
from torch import Tensor

from subspacelab.linalg.token_svd import project, sketch_basis, token_svd

TOKENS = 24
BATCHES = {
    "wide": torch.stack([gaussian(TOKENS, 60, seed) for seed in range(3)]),
    "narrow": torch.stack([gaussian(TOKENS, 10, seed) for seed in range(3)]),
    "square": torch.stack([gaussian(TOKENS, TOKENS, seed) for seed in range(2)]),
    "decaying": torch.stack([planted(TOKENS, 40, 0.6 ** torch.arange(TOKENS), seed) for seed in range(3)]),
    "rank_5": torch.stack([planted(TOKENS, 40, torch.tensor([9.0, 5, 3, 2, 1]), seed) for seed in range(3)]),
    "large": 1e6 * gaussian(TOKENS, 60)[None],
    "small": 1e-6 * gaussian(TOKENS, 60)[None],
    "one_row_of_zeros": torch.cat([torch.zeros(1, 1, 40, dtype=torch.float64), gaussian(TOKENS - 1, 40)[None]], dim=1),
}
RANKS = (1, 2, 5, 9, 16, TOKENS)


def _truncated(x: Tensor, rank: int) -> Tensor:
    u, s, vh = np.linalg.svd(x.numpy(), full_matrices=False)
    return torch.from_numpy(u[..., :rank] * s[..., None, :rank] @ vh[..., :rank, :])


@pytest.mark.parametrize("name", BATCHES)
def test_cosines_are_those_of_numpys_truncated_svd(name: str) -> None:
    x = BATCHES[name]
    cosines = token_svd(x).cosines()
    assert cosines.dtype == torch.float64
    assert cosines.shape == x.shape[:2]
    for rank in RANKS:
        y = _truncated(x, rank)
        expected = (x * y).sum((1, 2)) / (x.norm(dim=(1, 2)) * y.norm(dim=(1, 2)))
        # Energies are sums of float64 squares: eps times their number, far below 1e-12.
        torch.testing.assert_close(cosines[:, rank - 1], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", BATCHES)
def test_energies_are_squared_singular_values_and_u_is_orthonormal(name: str) -> None:
    x = BATCHES[name]
    result = token_svd(x)
    exact = torch.linalg.svdvals(x).square()
    padded = torch.nn.functional.pad(exact, (0, TOKENS - exact.shape[1]))
    # Eigenvalues of X X^T have an absolute error of eps times the largest.
    torch.testing.assert_close(result.energies, padded, rtol=0, atol=1e-13 * exact.max().item())
    assert (result.energies >= 0).all()
    assert (result.energies.diff(dim=-1) <= 0).all()
    gram = result.U.mT @ result.U
    # Eigenvectors of a symmetric matrix: orthonormal to a few eps.
    torch.testing.assert_close(gram, torch.eye(TOKENS, dtype=torch.float64).expand_as(gram), rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("rank", [1, 5, 16])
def test_projection_is_numpys_truncated_svd(name: str, rank: int) -> None:
    x = BATCHES[name]
    y = project(x, token_svd(x).U[:, :, :rank])
    # Gaps between neighbouring values of 1e-3 of the largest turn eps into 1e-12 at most.
    torch.testing.assert_close(y, _truncated(x, rank), rtol=0, atol=1e-11 * x.abs().max().item())


def test_cosines_rise_to_one_at_the_rank_of_x() -> None:
    cosines = token_svd(BATCHES["rank_5"]).cosines()
    assert (cosines.diff(dim=-1) >= 0).all()
    assert (cosines[:, 3] < 0.999).all()
    # Beyond the rank there is only rounding.
    torch.testing.assert_close(cosines[:, 4:], torch.ones_like(cosines[:, 4:]), rtol=0, atol=1e-14)
    assert cosines.max() <= 1


def test_a_picture_of_zeros_is_met_by_every_rank() -> None:
    x = torch.cat([torch.zeros(1, TOKENS, 60, dtype=torch.float64), BATCHES["wide"][:1]])
    result = token_svd(x)
    assert torch.equal(result.cosines()[0], torch.ones(TOKENS, dtype=torch.float64))
    assert torch.equal(project(x, result.U[:, :, :3])[0], x[0])
    torch.testing.assert_close(result.cosines()[1:], token_svd(BATCHES["wide"][:1]).cosines(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stored_types_are_taken_as_the_numbers_they_hold(dtype: torch.dtype) -> None:
    x = BATCHES["wide"].to(dtype)
    assert torch.equal(token_svd(x).energies, token_svd(x.double()).energies)
    assert project(x, token_svd(x).U[:, :, :4]).dtype == torch.float64


SKETCH_TOKENS, SKETCH_DIM, SKETCH_RANK = 32, 48, 6
DECAYING = torch.stack(
    [planted(SKETCH_TOKENS, SKETCH_DIM, 0.85 ** torch.arange(SKETCH_TOKENS), seed) for seed in range(4)]
)


def _cosines(x: Tensor, basis: Tensor) -> Tensor:
    return project(x, basis).norm(dim=(1, 2)) / x.norm(dim=(1, 2))


@pytest.mark.parametrize("power_steps", [0, 1, 3])
@pytest.mark.parametrize("k", [1, SKETCH_RANK, SKETCH_TOKENS])
def test_columns_are_orthonormal(power_steps: int, k: int) -> None:
    q = sketch_basis(DECAYING, gaussian(SKETCH_DIM, k), power_steps)
    assert q.shape == (4, SKETCH_TOKENS, k)
    # Householder QR: a few eps of float64.
    gram = q.mT @ q
    torch.testing.assert_close(gram, torch.eye(k, dtype=torch.float64).expand_as(gram), rtol=0, atol=1e-13)


@pytest.mark.parametrize("power_steps", [0, 2])
def test_the_true_right_basis_reaches_the_cosine_of_the_svd(power_steps: int) -> None:
    x = DECAYING[:1]
    omega = torch.linalg.svd(x[0]).Vh[:SKETCH_RANK].T
    reached = _cosines(x, sketch_basis(x, omega, power_steps))
    # The same subspace; its energy is known to eps times the condition 0.85^-6 of the kept part.
    torch.testing.assert_close(reached, token_svd(x).cosines()[:, SKETCH_RANK - 1], rtol=0, atol=1e-12)


def test_power_steps_bring_a_random_sketch_nearer_to_the_svd() -> None:
    for seed in range(5):
        omega = gaussian(SKETCH_DIM, SKETCH_RANK, seed)
        reached = torch.stack([_cosines(DECAYING, sketch_basis(DECAYING, omega, steps)) for steps in range(5)])
        assert (reached.diff(dim=0) > 0).all()
        best = token_svd(DECAYING).cosines()[:, SKETCH_RANK - 1]
        # Eckart-Young: none is better, but for rounding.
        assert (reached <= best + 1e-12).all()
        assert (best - reached[-1] < 0.1 * (best - reached[0])).all()


def test_a_sketch_as_wide_as_the_rank_of_x_is_exact() -> None:
    x = planted(SKETCH_TOKENS, SKETCH_DIM, torch.tensor([3.0, 2, 1]))[None]
    q = sketch_basis(x, gaussian(SKETCH_DIM, 3), 0)
    # X Omega has the range of X; the condition of a 3 x 3 Gaussian is some 10, so 1e-12 leaves a margin.
    torch.testing.assert_close(project(x, q), x, rtol=0, atol=1e-12)


def test_steps_do_not_lose_weak_directions_to_the_strongest() -> None:
    x = planted(SKETCH_TOKENS, SKETCH_DIM, torch.logspace(0, -5, SKETCH_RANK, dtype=torch.float64))[None]
    q = sketch_basis(x, gaussian(SKETCH_DIM, SKETCH_RANK), 4)
    # Without orthonormalisation (1e-5)^9 would drown in rounding; with it the weakest keeps 1e-16 / 1e-5.
    torch.testing.assert_close(project(x, q), x, rtol=0, atol=1e-10)


@pytest.mark.parametrize("power_steps", [0, 2])
def test_the_gradient_of_the_projection_is_right(power_steps: int) -> None:
    x = torch.stack([gaussian(5, 7, 1), gaussian(5, 7, 2)])
    omega = gaussian(7, 3, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda o: sketch_basis(x, o, power_steps), (omega,))
    assert torch.autograd.gradcheck(lambda o: project(x, sketch_basis(x, o, power_steps)), (omega,))
