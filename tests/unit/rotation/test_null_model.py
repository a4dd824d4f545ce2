"""The null model: random updates look random to it, planted ones do not."""

import math

import pandas as pd
import pytest
import torch
from torch import Tensor

from subspacelab.linalg.svd import svd
from subspacelab.rotation.metrics import Value, measure_weight
from subspacelab.rotation.null_model import (
    MEASURES,
    SUFFIXES_OF,
    Null,
    false_alarm_rate,
    null_columns,
    stands_out,
    with_null,
)
from subspacelab.rotation.random_updates import MODELS, Model, RealUpdate, gaussian_update
from subspacelab.rotation.weight import Weight

M, N, K, NORM = 48, 32, 8, 0.05


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weight(w: Tensor) -> Weight:
    return Weight(svd(w), w)


def base(seed: int, m: int = M, n: int = N) -> Tensor:
    """A matrix of decaying spectrum and norm 1, bf16 entries so that differences are exact."""
    w = torch.randn(m, n, generator=generator(seed), dtype=torch.float64)
    u, s, vh = torch.linalg.svd(w, full_matrices=False)
    w = u * (s * torch.linspace(1, 0.3, len(s))) @ vh
    return w / w.norm()


def measured(*chain: Tensor, seed: int = 0, draws: int = 10, k: int = K) -> dict[str, Value]:
    weights = tuple(weight(w.float()) for w in chain)
    assert len(weights) == 3
    row = measure_weight(f"w{seed}", weights, k=k, seed=seed)
    return with_null(row, null_columns(f"w{seed}", weights, row, seed=seed, draws=draws))


def random_chain(seed: int, m: int = M, n: int = N) -> tuple[Tensor, Tensor, Tensor]:
    """Two independent Gaussian stages: what the null model is of."""
    w0, g = base(seed, m, n), generator(seed + 1000)
    w1 = w0 + gaussian_update((m, n), NORM, g)
    return w0, w1, w1 + gaussian_update((m, n), NORM, g)


@pytest.fixture(scope="module")
def random_rows() -> pd.DataFrame:
    return pd.DataFrame([measured(*random_chain(seed), seed=seed) for seed in range(25)])


def test_random_updates_look_random(random_rows: pd.DataFrame) -> None:
    """Ratios near 1, and |z| > 3 about as often as Student's t says."""
    for column in ("rotation_mse_U", "angle_mean_01", "angle_mean_02_Vh", "nss_12", "update_stable_rank_02"):
        ratio = random_rows[column].mean() / random_rows[f"{column}_null_mean"].mean()
        # The mean of 25 weights, each of up to 20 % deviation; benchmarks/null_models.py has 0.994 to 1.002 over 200.
        assert ratio == pytest.approx(1, abs=0.15), column
    z = random_rows[[f"{c}_z" for c in MEASURES if not c.startswith("intruders") and f"{c}_z" in random_rows]].to_numpy(
        dtype=float
    )
    z = z[~pd.isna(z)]
    # 1.9 % of Student's t, 4 % of the skewed angles; the columns of a weight hang together.
    assert (abs(z) > 3).mean() < 0.08


def test_the_composition_error_of_a_random_chain_is_the_null_models(random_rows: pd.DataFrame) -> None:
    assert random_rows["rotation_mse_Vh_null_mean"].isna().all()  # square: an identity
    assert random_rows["rotation_mse_U_z"].abs().median() < 1.5  # of Student's t with 9 degrees of freedom: 0.74


@pytest.mark.parametrize(("lead", "sign"), [(True, 1), (False, -1)])
def test_planted_updates_stand_out(lead: bool, sign: int) -> None:
    """In the leading frame, or off the leading directions of both sides."""
    for seed in range(3):
        w0 = base(seed)
        u, _, vh = torch.linalg.svd(w0, full_matrices=False)
        chosen = slice(0, K) if lead else slice(K, None)
        u, v = u[:, chosen], vh[chosen].T
        g1, g2 = (torch.randn(M, N, generator=generator(seed + i), dtype=torch.float64) for i in (50, 60))
        d1, d2 = (u @ (u.T @ g @ v) @ v.T for g in (g1, g2))
        w1 = w0 + NORM * d1 / d1.norm()
        row = measured(w0, w1, w1 + NORM * d2 / d2.norm(), seed=seed)
        value, mean, std = (row[f"principal_energy_01{part}"] for part in ("", "_null_mean", "_null_std"))
        assert sign * row["principal_energy_01_z"] > 5
        assert stands_out("principal_energy_01", value, Null(mean, std))


def test_a_stage_that_goes_on_stands_out() -> None:
    w0, w1, _ = random_chain(0)
    row = measured(w0, w1, w1 + (w1 - w0))
    assert row["cosine_01_12_null_mean"] == 0
    assert row["cosine_01_12_null_std"] == 1 / math.sqrt(M * N)
    assert row["cosine_01_12_z"] == pytest.approx(math.sqrt(M * N), rel=1e-5)
    assert stands_out("cosine_01_12", row["cosine_01_12"], Null(0.0, row["cosine_01_12_null_std"]))


def test_draws_have_the_norm_of_the_update_and_depend_on_seed_and_name_only() -> None:
    assert gaussian_update((M, N), NORM, generator(0)).norm().item() == pytest.approx(NORM, rel=1e-12)
    chain = random_chain(0)
    first, again, other = measured(*chain, seed=1), measured(*chain, seed=1), measured(*chain, seed=2)
    assert first == again
    assert first["nss_01_null_mean"] != other["nss_01_null_mean"]
    assert first["principal_energy_01_null_std"] == other["principal_energy_01_null_std"]


def test_the_null_model_of_a_pair_is_that_of_its_norm_and_start() -> None:
    """Against numpy's SVD of the same draws."""
    chain = random_chain(3)
    row = measured(*chain, seed=3, draws=2)
    from subspacelab.rotation.metrics import generator_for

    shifts = []
    for i in range(2):
        g = generator_for(3, "w3", "null", str(i))
        for start, end in ((0, 1), (1, 2), (0, 2)):
            w = chain[start].float().double()
            drawn = torch.randn(M, N, generator=g, dtype=torch.float64)
            drawn *= (chain[end] - chain[start]).norm() / drawn.norm()
            before, after = torch.linalg.svdvals(w), torch.linalg.svdvals(w + drawn)
            shifts.append(((after - before).norm() / before.norm()).item())
    for j, pair in enumerate(("01", "12", "02")):
        assert row[f"nss_{pair}_null_mean"] == pytest.approx((shifts[j] + shifts[j + 3]) / 2, rel=1e-5)


def test_nothing_is_told_where_there_is_no_update_or_nothing_but_an_identity() -> None:
    w0, w1, _ = random_chain(0, 24, 24)
    row = measured(w0, w0, w1, k=24)
    blank = {c for c in MEASURES if row[f"{c}_null_mean"] is None}
    assert {"nss_01", "principal_energy_01", "cosine_01_12", "rotation_mse_U", "rotation_rel_Vh"} <= blank
    assert {"angle_mean_12", "angle_mean_02_U"} <= blank  # k is all there is: 0 for any matrices
    assert {"nss_12", "nss_02", "update_stable_rank_12"}.isdisjoint(blank)
    truncated = tuple(Weight(svd(w, rank=K), None) for w in random_chain(0))
    row = measure_weight("w", truncated, k=4, seed=0)
    assert null_columns("w", truncated, row, seed=0, draws=2) == {}


def test_one_draw_has_no_deviation() -> None:
    row = measured(*random_chain(0), draws=1)
    assert row["nss_01_null_mean"] is not None
    assert (row["nss_01_null_std"], row["nss_01_z"]) == (None, None)
    assert row["principal_energy_01_z"] is not None


@pytest.mark.parametrize(("draws", "z"), [(3, 3.0), (3, 5.0), (10, 3.0)])
def test_the_rate_of_false_alarms_is_that_of_normal_draws(draws: int, z: float) -> None:
    normal = torch.randn(100_000, 1 + draws, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    scores = (normal[:, 0] - normal[:, 1:].mean(dim=1)) / normal[:, 1:].std(dim=1)
    rate = (scores.abs() > z).double().mean().item()
    # Four standard errors of a share of 100,000.
    assert false_alarm_rate(z, draws) == pytest.approx(rate, abs=4 * math.sqrt(rate * (1 - rate) / 100_000))


@pytest.mark.parametrize(
    ("column", "value", "mean", "std", "expected"),
    [
        ("nss_01", 1.04, 1.0, 0.004, False),
        ("nss_01", 1.5, 1.0, 0.125, False),
        ("nss_01", 1.5, 1.0, 0.08, True),
        ("nss_01", 0.7, 1.0, 0.05, True),
        ("nss_01", 0.7, 1.0, None, False),
        ("cosine_01_12", 0.04, 0.0, 0.001, False),
        ("cosine_01_12", -0.2, 0.0, 0.001, True),
        ("intruders_01", 0, 0.0, 0.0, False),
        ("intruders_01", 3, 0.0, 0.0, True),
    ],
)
def test_both_ratio_and_z_must_say_something(
    column: str, value: float, mean: float, std: float | None, expected: bool
) -> None:
    assert stands_out(column, value, Null(mean, std)) is expected


@pytest.mark.parametrize("model", MODELS)
def test_draws_of_every_model_are_like_the_update(model: Model) -> None:
    update = torch.where(torch.rand(M, N, generator=generator(1)) < 0.1, gaussian_update((M, N), 1, generator(0)), 0)
    real = RealUpdate((M, N), update.norm().item(), update.device, lambda: update)
    drawn = real.draw(model, generator(2))
    assert drawn.dtype == torch.float64
    assert drawn.norm().item() == pytest.approx(update.norm().item(), rel=1e-6)
    assert not torch.equal(drawn, update)
    assert torch.equal(drawn, real.draw(model, generator(2)))
    if model == "spectrum":
        torch.testing.assert_close(torch.linalg.svdvals(drawn), torch.linalg.svdvals(update), rtol=1e-5, atol=1e-6)
    if model == "permuted":
        assert torch.equal(drawn.flatten().sort().values, update.flatten().sort().values)


@pytest.mark.parametrize("model", ["spectrum", "permuted"])
def test_updates_drawn_from_a_model_look_random_to_it(model: Model) -> None:
    """Both stages shuffled, or turned, once: as unlike the null model as another draw of it."""
    z: list[float] = []
    for seed in range(8):
        w0, g = base(seed), generator(seed + 500)
        update = torch.where(torch.rand(M, N, generator=g) < 0.2, gaussian_update((M, N), NORM, g), 0)
        real = RealUpdate((M, N), update.norm().item(), update.device, lambda update=update: update)
        w1 = w0 + real.draw(model, g)
        weights = (weight(w0.float()), weight(w1.float()), weight((w1 + real.draw(model, g)).float()))
        row = measure_weight("w", weights, k=K, seed=seed)
        nulls = null_columns("w", weights, row, seed=seed, draws=10, model=model)
        assert ("update_stable_rank_01" in nulls) == (model == "permuted")
        z += [
            s for c, null in nulls.items() if c.startswith(("nss", "principal")) and (s := null.z(row[c])) is not None
        ]
    assert len(z) == 48
    assert (torch.tensor(z).abs() > 3).double().mean() < 0.1  # Student's t of 9 degrees of freedom: 0.019
    assert abs(torch.tensor(z).mean()) < 0.5


def test_an_update_of_one_row_is_unlike_its_shuffled_entries_too() -> None:
    """Its stable rank is small by its rows alone; an update of as many entries in all places has a large one."""
    w0 = base(0)
    rows = torch.zeros(M, N, dtype=torch.float64)
    rows[:1] = gaussian_update((1, N), NORM, generator(3))
    weights = (weight(w0.float()), weight((w0 + rows).float()), weight((w0 + rows).float()))
    row = measure_weight("w", weights, k=K, seed=0)
    nulls = {model: null_columns("w", weights, row, seed=0, draws=10, model=model) for model in MODELS}
    wide = with_null(row, nulls.pop("gaussian"), others=nulls)
    assert wide["update_stable_rank_01_permuted_z"] < -3
    assert wide["update_stable_rank_01"] < 0.5 * wide["update_stable_rank_01_permuted_mean"]
    assert wide["update_stable_rank_01_z"] < -5
    assert "update_stable_rank_01_spectrum_z" not in wide
    columns = list(wide)
    at = columns.index("principal_energy_01")
    assert columns[at + 1 : at + 7] == [
        f"principal_energy_01_{s}" for m in ("gaussian", "spectrum") for s in SUFFIXES_OF[m]
    ]
    assert columns[at + 7] == "principal_energy_01_permuted_mean"


def test_a_rotation_planted_in_the_leading_frame_stands_out() -> None:
    """The 4 leading directions, 5 times the others, turned by 0.05 towards trailing ones: no singular value moves."""
    m, n, k = 96, 64, 4
    u, v = (torch.linalg.qr(torch.randn(size, n, generator=generator(size), dtype=torch.float64)).Q for size in (m, n))
    s = torch.cat([torch.full((k,), 5.0), torch.ones(n - k)]).double() * torch.linspace(1, 0.8, n)
    turned, (cos, sin) = u.clone(), (math.cos(0.05), math.sin(0.05))
    turned[:, :k], turned[:, -k:] = cos * u[:, :k] + sin * u[:, -k:], cos * u[:, -k:] - sin * u[:, :k]
    row = measured((u * s) @ v.T, (turned * s) @ v.T, (turned * s) @ v.T, k=k)
    assert row["angle_mean_01_U"] == pytest.approx(math.degrees(0.05), rel=1e-4)
    assert row["nss_01"] < 1e-6
    value, mean, std = (row[f"angle_mean_01_U{part}"] for part in ("", "_null_mean", "_null_std"))
    assert row["angle_mean_01_U_z"] > 5
    assert stands_out("angle_mean_01_U", value, Null(mean, std))
