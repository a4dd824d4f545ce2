"""One layer's row, from factors and inputs made by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from subspacelab.linalg.null_space import null_space
from subspacelab.linalg.subspaces import random_orthonormal
from subspacelab.models.lora_factors import Factors, original
from subspacelab.nullspace.calibration import Inputs
from subspacelab.nullspace.metrics import Layer, layer_stats

TOKENS, DIM, OUT, RANK = 60, 12, 9, 3


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rows(seed: int = 1) -> Tensor:
    return random_orthonormal(DIM, RANK, torch.Generator().manual_seed(seed), torch.float32).T.contiguous()


def inputs_of(seed: int = 3) -> Inputs:
    """All tokens are sampled; the first two stand first in their windows and are a hundred times as long."""
    x = random(TOKENS, DIM, seed=seed)
    x[:2] *= 100
    return Inputs(x, x[:2], x.double().T @ x.double(), {"layer": 0.25})


def plain_layer(**changes: object) -> Layer:
    """lora_null_v2 after some training."""
    w = random(OUT, DIM, seed=5)
    return replace(Layer("layer", Factors(random(OUT, RANK, seed=6), rows()), w, w, True), **changes)


def moved_layer(down_frozen: bool) -> Layer:
    """W_res = W - A_0 B_0, trained."""
    a0, b0 = random(OUT, RANK, seed=7), random(RANK, DIM, seed=8)
    b = b0 if down_frozen else b0 + 0.1 * random(RANK, DIM, seed=9)
    factors = Factors(a0 + random(OUT, RANK, seed=10), b, a0, b0)
    residual = random(OUT, DIM, seed=11)
    return Layer("layer", factors, residual, original(residual, factors), down_frozen)


def test_ratios_of_orthonormal_rows_are_those_of_b_itself() -> None:
    layer, live = plain_layer(), inputs_of()
    found = layer_stats(layer, live, inputs_of(4), 960)
    x, b, a = (t.double().numpy() for t in (live.sample, layer.factors.B, layer.factors.A))
    norm = np.linalg.norm
    assert found.B_orthonormal
    assert (found.samples, found.in_features, found.rank, found.out_features) == (TOKENS, DIM, RANK, OUT)
    assert found.BX_ratio == pytest.approx(norm(x @ b.T) / norm(x), rel=1e-6)
    # B is stored in float32, so that its rows are orthonormal to 6e-8.
    assert found.BX_ratio_mean_norms == pytest.approx(norm(x @ b.T, axis=1).mean() / norm(x, axis=1).mean(), rel=1e-6)
    assert found.BX_ratio_mean_norms == pytest.approx(found.BX_norm / found.X_norm, rel=1e-6)
    assert found.base_BX_ratio == 0.25
    assert found.ABX_ratio == pytest.approx(norm(x @ b.T @ a.T, axis=1).mean() / norm(x, axis=1).mean(), rel=1e-9)
    assert found.DeltaX_ratio == pytest.approx(found.ABX_ratio, rel=1e-9)
    assert found.adapter_contribution == pytest.approx(found.ABX_norm / found.FullOutput_norm, rel=1e-12)
    for part, ratio in ((x[:2], found.BX_ratio_bos), (x[2:], found.BX_ratio_rest)):
        assert ratio == pytest.approx(norm(part @ b.T) / norm(part), rel=1e-6)
    values = np.linalg.eigvalsh(x.T @ x)
    assert found.BX_ratio_optimum == pytest.approx(np.sqrt(values[:RANK].sum() / values.sum()), rel=1e-6)
    assert found.BX_ratio_random == pytest.approx(np.sqrt(RANK / DIM))
    assert found.tokens_per_dimension == 960 / DIM


def test_rows_of_another_scale_are_orthonormalised_and_it_is_said() -> None:
    plain = layer_stats(plain_layer(), inputs_of(), inputs_of(4), 1)
    mixed = random(RANK, RANK, seed=12)
    scaled = replace(plain_layer(), factors=Factors(random(OUT, RANK, seed=6), mixed @ rows()))
    found = layer_stats(scaled, inputs_of(), inputs_of(4), 1)
    assert not found.B_orthonormal
    for name in ("BX_ratio", "BX_ratio_mean_norms", "BX_ratio_median", "BX_ratio_bos", "BX_ratio_rest"):
        assert getattr(found, name) == pytest.approx(getattr(plain, name), rel=1e-5), name
    assert found.BX_ratio_mean_norms != pytest.approx(found.BX_norm / found.X_norm, rel=0.05)


def test_the_change_is_told_from_what_the_adapter_holds_of_the_weights() -> None:
    layer, live = moved_layer(True), inputs_of()
    found = layer_stats(layer, live, inputs_of(4), 1)
    f = layer.factors
    change = ((f.A - f.A0) @ f.B).double()
    wanted = (live.sample.double() @ change.T).norm(dim=1).mean() / live.sample.double().norm(dim=1).mean()
    assert found.DeltaX_ratio == pytest.approx(float(wanted), rel=1e-4)
    assert found.DeltaX_ratio != pytest.approx(found.ABX_ratio, rel=0.05)


@pytest.mark.parametrize("layer", [plain_layer(), moved_layer(True)], ids=["A_0 = 0", "A_0"])
def test_both_bounds_hold_and_are_measured_on_their_own_inputs(layer: Layer) -> None:
    found = layer_stats(layer, inputs_of(), inputs_of(4), 1)
    for left, right in ((found.bound_left, found.bound), (found.base_bound_left, found.base_bound)):
        assert left is not None
        assert right is not None
        assert 0 < left <= right
    assert found.bound != found.base_bound
    assert found.bound_left != found.base_bound_left


def test_a_method_that_trains_b_has_no_bound() -> None:
    found = layer_stats(moved_layer(False), inputs_of(), inputs_of(4), 1)
    assert (found.bound, found.bound_left, found.base_bound, found.base_bound_left) == (None,) * 4


def test_a_b_that_moved_though_frozen_or_another_base_breaks_the_bound() -> None:
    f = moved_layer(True).factors
    untrained = replace(moved_layer(True), factors=Factors(f.A0, f.B + 0.01, f.A0, f.B0))
    other_base = replace(plain_layer(), base=random(OUT, DIM, seed=20), factors=Factors(torch.zeros(OUT, RANK), rows()))
    for layer in (untrained, other_base):
        with pytest.raises(ValueError, match="build again"):
            layer_stats(layer, inputs_of(), inputs_of(4), 1)


def test_rounding_of_the_residual_is_no_violation() -> None:
    f = moved_layer(True).factors
    untrained = replace(moved_layer(True), factors=Factors(f.A0, f.B0, f.A0, f.B0))
    found = layer_stats(untrained, inputs_of(), inputs_of(4), 1)
    assert found.bound == 0
    assert 0 < found.bound_left < 1e-6  # type: ignore[operator]


def test_the_optimum_is_of_the_same_tokens_so_that_no_b_is_below_it() -> None:
    live = inputs_of()
    assert live.moment is not None
    best = null_space(live.moment, RANK)
    few = replace(live, sample=live.sample[:5])  # norms are of five tokens, the ratio and its optimum of all
    layer = plain_layer(factors=Factors(random(OUT, RANK, seed=6), best.basis.float()))
    found = layer_stats(layer, few, replace(inputs_of(4), sample=inputs_of(4).sample[:5]), 1)
    # B is stored in float32: 6e-8 of each of its entries.
    assert found.BX_ratio == pytest.approx(found.BX_ratio_optimum, rel=1e-5)
    assert found.BX_ratio >= found.BX_ratio_optimum * (1 - 1e-9)


def test_inputs_that_are_zero_or_not_finite_are_refused_and_zero_ones_of_the_base_make_no_nan() -> None:
    x, layer = random(TOKENS, DIM, seed=3), plain_layer()
    zero = Inputs(0 * x, 0 * x[:2], 0 * (x.T @ x).double(), {"layer": 0.0})
    with pytest.raises(ValueError, match="inputs are zero"):
        layer_stats(layer, zero, inputs_of(4), 1)
    with pytest.raises(ValueError, match="NaN or infinity"):
        layer_stats(layer, replace(inputs_of(), moment=torch.full((DIM, DIM), torch.nan).double()), zero, 1)
    found = layer_stats(layer, inputs_of(), zero, 1)
    assert (found.base_BX_ratio, found.base_DeltaX_ratio, found.base_bound_left, found.base_bound) == (0, 0, 0, 0)
