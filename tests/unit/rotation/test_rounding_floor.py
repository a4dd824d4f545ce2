import pytest
import torch

from subspacelab.linalg.svd import svd
from subspacelab.rotation.metrics import bf16_neighbour, draw_unrounded, measure_weight
from subspacelab.rotation.null_model import null_columns, with_null
from subspacelab.rotation.weight import Weight


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_float32_weight_is_rounded() -> None:
    w = torch.randn(50, 30, generator=generator())
    assert torch.equal(bf16_neighbour(w, generator()), w.bfloat16().float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_weight_of_bf16_entries_is_drawn_among_those_that_round_to_it(dtype: torch.dtype) -> None:
    w = torch.randn(300, 200, generator=generator()).bfloat16()
    w[0, :4] = torch.tensor([0.0, 1.0, -2.0, 0.5])  # zero, and powers of two, whose step differs on both sides
    near = bf16_neighbour(w.to(dtype), generator())
    assert torch.equal(near.bfloat16(), w)
    assert near[0, 0] == 0
    assert not torch.equal(near, w.float())


def test_noise_of_the_factors_does_not_hide_that_entries_are_bf16() -> None:
    w = torch.randn(50, 30, generator=generator()).bfloat16().float()
    noisy = w + 1e-8 * torch.randn(w.shape, generator=generator(1))
    assert not torch.equal(bf16_neighbour(noisy, generator()), noisy.bfloat16().float())


def test_the_draw_fills_the_interval_evenly() -> None:
    w = torch.full((400, 400), 1.5, dtype=torch.bfloat16)
    offset = (draw_unrounded(w, generator()) - 1.5) / 2**-8  # half a step of bf16 at 1.5 is 2^-8
    assert offset.abs().max() < 1
    # The mean of 160,000 uniform draws in (-1, 1) deviates by 1/sqrt(3 * 160000) = 1.4e-3; their std is 1/sqrt(3).
    assert abs(offset.mean().item()) < 6e-3
    assert abs(offset.std().item() - 3**-0.5) < 6e-3


def test_the_same_seed_draws_the_same() -> None:
    w = torch.randn(20, 10, generator=generator()).bfloat16()
    assert torch.equal(draw_unrounded(w, generator(3)), draw_unrounded(w, generator(3)))
    assert not torch.equal(draw_unrounded(w, generator(3)), draw_unrounded(w, generator(4)))


def test_a_zero_weight_has_itself_for_neighbour() -> None:
    assert torch.equal(bf16_neighbour(torch.zeros(5, 4), generator()), torch.zeros(5, 4))


def test_what_lies_below_half_an_ulp_of_noise_is_still_seen_and_told_from_chance() -> None:
    """Adam's steps of 1e-6 along one direction, stored in bf16: below the noise in angle, nss and norm, yet exact."""
    g = generator(7)
    master = torch.randn(96, 64, generator=g) * 0.1
    along = torch.outer(torch.randn(96, generator=g), torch.randn(64, generator=g)).sign()
    stored = []
    for step in (0, 1, 2):
        noise = torch.randn(master.shape, generator=g) * (1e-6 * (200 * step) ** 0.5)
        stored.append((master + 1e-6 * (30 * step) * along + noise).bfloat16())
    chain = tuple(Weight(svd(w), w) for w in stored)
    assert len(chain) == 3
    row = measure_weight("w", chain, k=8, seed=0)
    for column in ("angle_mean", "nss", "update_norm"):
        assert row[f"{column}_01"] < row[f"floor_{column}"], column
    before, after = (w.double() for w in stored[:2])
    # ||W_a|| comes from float32 singular values.
    assert row["update_norm_01"] == pytest.approx(((after - before).norm() / before.norm()).item(), rel=1e-6)
    assert row["unchanged_01"] == (before == after).double().mean().item()
    told = with_null(row, null_columns("w", chain, row, seed=0, draws=10))
    assert told["update_stable_rank_02_z"] < -5
