import pytest
import torch

from subspacelab.linalg.svd import svd
from subspacelab.rotation.chain import Weight
from subspacelab.rotation.metrics import generator_for, measure_weight, pair_column


def weight(w: torch.Tensor) -> Weight:
    return Weight(svd(w), w)


def chain(m: int, n: int) -> tuple[Weight, Weight, Weight]:
    noise = torch.randn(3, m, n, generator=torch.Generator().manual_seed(0))
    w0, w1, w2 = noise[0], noise[0] + 0.02 * noise[1], noise[0] + 0.02 * noise[1] + 0.02 * noise[2]
    return weight(w0), weight(w1), weight(w2)


def test_the_side_comes_last_in_a_column() -> None:
    assert pair_column("angle_max_U", "01") == "angle_max_01_U"
    assert pair_column("angle_max", "12") == "angle_max_12"
    assert pair_column("update_norm", "02") == "update_norm_02"


def test_identities_are_told_by_the_shape() -> None:
    for shape, expected in (((24, 8), (False, True)), ((8, 24), (True, False)), ((8, 8), (True, True))):
        row = measure_weight("w", chain(*shape), k=4, seed=0)
        assert (row["identity_U"], row["identity_Vh"]) == expected


def test_k_is_cut_to_the_rank_and_64_by_default() -> None:
    assert measure_weight("w", chain(20, 12), k=50, seed=0)["k"] == 12
    assert measure_weight("w", chain(80, 70), k=None, seed=0)["k"] == 64


def test_a_gap_past_the_last_value_is_undefined() -> None:
    assert measure_weight("w", chain(20, 12), k=12, seed=0)["gap_k"] is None
    gap = measure_weight("w", chain(20, 12), k=3, seed=0)["gap_k"]
    s = chain(20, 12)[0].svd.S
    assert gap == s[2].item() / s[3].item()


@pytest.mark.parametrize(("gap", "blank"), [(1.04, True), (1.06, False)])
def test_the_largest_angle_is_told_where_the_gap_at_k_determines_it(gap: float, blank: bool) -> None:
    s = torch.linspace(2, 1, 8)
    s[:4] += gap * s[4] - s[3]
    base = torch.diag(s)
    row = measure_weight("w", (weight(base), weight(base + 1e-3), weight(base - 1e-3)), k=4, seed=0)
    assert row["gap_k"] == pytest.approx(gap, rel=1e-6)
    largest = {c: row[c] is None for c in row if "angle_max" in c}
    assert set(largest.values()) == {blank}
    assert {"angle_max_01", "angle_max_12_U", "angle_max_02_Vh", "floor_angle_max", "floor_angle_max_U"} < set(largest)
    assert all(row[c] is not None for c in row if "angle_mean" in c)


def test_a_zero_base_has_undefined_ratios_and_no_error() -> None:
    zero, one = weight(torch.zeros(10, 6)), weight(torch.ones(10, 6))
    row = measure_weight("w", (zero, one, one), k=2, seed=0)
    assert row["nss_01"] is None
    assert row["update_norm_01"] is None
    assert row["update_norm_12"] == 0


def test_generators_depend_on_seed_and_name_only() -> None:
    first = torch.rand(1, generator=generator_for(1, "a", "floor"))
    assert torch.equal(first, torch.rand(1, generator=generator_for(1, "a", "floor")))
    assert not torch.equal(first, torch.rand(1, generator=generator_for(2, "a", "floor")))
    assert not torch.equal(first, torch.rand(1, generator=generator_for(1, "b", "floor")))
