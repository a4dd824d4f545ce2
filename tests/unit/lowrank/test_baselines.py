"""Nothing of rank r comes nearer to a picture than its truncated SVD (Eckart & Young 1936)."""

import numpy as np
import pytest
import torch
from tests.unit.lowrank.caches import random_features
from torch import Tensor

from subspacelab.linalg.token_svd import token_svd
from subspacelab.lowrank.architectures import ALIASES, ModelSpec, build_model
from subspacelab.lowrank.baselines import CONTROLS, SVD, approximations
from subspacelab.lowrank.metrics import similarity
from subspacelab.lowrank.state import LowRankModel

TOKENS, DIM = 16, 12
SLACK = 1e-9  # cosines in float64 are good to 1e-15; the approximations of the networks are computed in float64 too


def pictures() -> Tensor:
    return random_features(5, TOKENS, DIM, seed=3).double()


def optimum(x: Tensor, rank: int) -> np.ndarray:
    """Cosine of each picture with its truncated SVD, by LAPACK's SVD."""
    values = np.linalg.svd(x.numpy(), compute_uv=False)
    return np.linalg.norm(values[:, :rank], axis=1) / np.linalg.norm(values, axis=1)


def common_basis(x: Tensor) -> Tensor:
    return torch.linalg.eigh(x.flatten(0, 1).T @ x.flatten(0, 1)).eigenvectors.flip(1)


def trained(arch: str, x: Tensor, rank: int, *, steps: int) -> LowRankModel:
    """A network fitted to the very pictures it is measured on: as near as it comes."""
    basis = common_basis(x)[:, :rank].float()
    model = build_model(ModelSpec(arch, TOKENS, DIM, rank), seed=rank, basis=basis).double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x)[2] - x).square().mean().backward()
        optimizer.step()
    return LowRankModel(model.eval(), 1, 0)


@pytest.mark.parametrize("rank", [1, 3, 7, 11])
def test_no_method_beats_the_svd_on_any_picture(rank: int) -> None:
    x = pictures()
    best = optimum(x, rank)
    models = {arch: trained(arch, x, rank, steps=25) for arch in ALIASES}
    with torch.no_grad():
        methods = approximations(models, common_basis(x), rank, seed=0)
        cosines = {name: similarity(x, approximate(x)).cosine.numpy() for name, approximate in methods.items()}
    assert set(cosines) == {SVD, *CONTROLS, *ALIASES}
    np.testing.assert_allclose(cosines.pop(SVD), best, rtol=0, atol=1e-12)  # float64; Gram's 1e-16 of the energy
    for name, cosine in cosines.items():
        assert (cosine <= best + SLACK).all(), name
        assert (cosine > 0.1).all(), f"{name} is no approximation at all"


@pytest.mark.parametrize("arch", ALIASES)
@pytest.mark.parametrize("rank", [2, 6])
def test_untrained_networks_do_not_beat_the_svd(arch: str, rank: int) -> None:
    x = pictures()
    for seed in range(5):
        model = build_model(ModelSpec(arch, TOKENS, DIM, rank, shortcut=False), seed=seed).double().eval()
        cosine = similarity(x, model(x)[2].detach()).cosine.numpy()
        assert (cosine <= optimum(x, rank) + SLACK).all()


@pytest.mark.parametrize("power_steps", [0, 1, 2])
@pytest.mark.parametrize("rank", [1, 4, 9])
def test_a_sketch_by_the_true_right_singular_basis_reaches_the_svd(rank: int, power_steps: int) -> None:
    for x in pictures().split(1):
        basis = torch.linalg.svd(x[0], full_matrices=False).Vh[:rank].T
        spec = ModelSpec("Sketch", TOKENS, DIM, rank, power_steps=power_steps)
        model = build_model(spec, seed=0).double()
        model.net.start_from(basis)
        cosine = similarity(x, model(x)[2].detach()).cosine.numpy()
        np.testing.assert_allclose(cosine, optimum(x, rank), rtol=0, atol=1e-12)  # float64


def test_cosines_of_all_ranks_are_numpys() -> None:
    x = pictures()
    found = token_svd(x).cosines().numpy()
    expected = np.stack([optimum(x, rank) for rank in range(1, TOKENS + 1)], axis=1)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)  # float64
