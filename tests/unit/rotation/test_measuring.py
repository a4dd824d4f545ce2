"""Comparisons of weights where they lie: two checkpoints, three, four; streamed, exact, saved and read again."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from scipy.linalg import subspace_angles
from tests.unit.rotation.chains import SMALL, chain_tensors
from torch import Tensor, nn

from subspacelab.checkpoints import open_checkpoint
from subspacelab.core.errors import SettingError
from subspacelab.core.files import write_csv
from subspacelab.rotation.chain import open_chain
from subspacelab.rotation.comparison import LINKS, SPECTRA, TABLES, Comparison, compare
from subspacelab.rotation.factors import read_decomposition
from subspacelab.rotation.groups import layer_index, make_groups
from subspacelab.rotation.logging import log_curves
from subspacelab.rotation.measuring import COMMON, MEASURED, Settings, typed
from subspacelab.rotation.metrics import measure_weight
from subspacelab.rotation.null_model import null_columns, with_null
from subspacelab.rotation.null_plots import score_grid
from subspacelab.rotation.plots import PICTURES
from subspacelab.rotation.weight import Weight, subtract

Folders = tuple[Path, Path, Path]
K = 8
SETTINGS: dict[str, Any] = {"k": K, "null_draws": 2, "device": "cpu"}
FEW = r"(qkv|v_proj|layers\.\d\.mlp\.up_proj)\.weight"


class Model(nn.Module):
    """Weights under their own names, dots and all."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.tensors = tensors

    def state_dict(self, *_: Any, **__: Any) -> dict[str, Tensor]:  # type: ignore[override]
        return self.tensors


@pytest.fixture(scope="module")
def chain() -> list[dict[str, Tensor]]:
    return chain_tensors(scales=(0.03, 0.02, 0.01))


@pytest.fixture(scope="module")
def two(chain: list[dict[str, Tensor]]) -> Comparison:
    return compare(chain[0], chain[1], include=FEW, **SETTINGS)


@pytest.fixture(scope="module")
def four(chain: list[dict[str, Tensor]]) -> Comparison:
    return compare(*chain, include=FEW, modules={"V": "model.layers.{}.self_attn.v_proj"}, **SETTINGS)


def matrix(tensor: Tensor) -> np.ndarray:
    return tensor.reshape(len(tensor), -1).double().numpy()


def test_a_link_agrees_with_numpy_on_the_stored_weights(two: Comparison, chain: list[dict[str, Tensor]]) -> None:
    assert list(two.layers["from"].unique()) == ["state_dict (1)"]
    assert list(two.layers["to"].unique()) == ["state_dict (2)"]
    assert two.layers["weight"].is_unique
    assert two.links is two.layers
    for row in two.layers.itertuples():
        a, b = matrix(chain[0][row.weight]), matrix(chain[1][row.weight])
        size = np.linalg.norm(b - a)
        assert row.update_norm == pytest.approx(size / np.linalg.norm(a), rel=1e-6)
        assert row.update_stable_rank == pytest.approx((size / np.linalg.norm(b - a, 2)) ** 2, rel=1e-6)
        assert row.unchanged == (a == b).mean()
        (ua, sa, va), (ub, sb, vb) = (np.linalg.svd(w, full_matrices=False) for w in (a, b))
        assert row.angle_mean_U == pytest.approx(np.degrees(subspace_angles(ua[:, :K], ub[:, :K])).mean(), abs=1e-3)
        assert row.angle_mean_Vh == pytest.approx(np.degrees(subspace_angles(va[:K].T, vb[:K].T)).mean(), abs=1e-3)
        assert row.nss == pytest.approx(np.linalg.norm(sb - sa) / np.linalg.norm(sa), rel=1e-4)
        inside = (np.linalg.norm(ua[:, :K].T @ (b - a) @ va[:K].T) / size) ** 2
        assert row.principal_energy == pytest.approx(inside * a.size / K**2, rel=1e-4)
        np.testing.assert_allclose(two.spectra[row.weight].numpy(), [sa, sb], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["path", "reference", "checkpoint", "module", "decomposed"])
def test_weights_are_read_wherever_they_are(folders: Folders, two: Comparison, kind: str) -> None:
    stored, tensors = folders[0].parents[1] / "checkpoints" / "base", chain_tensors()[:2]
    places: dict[str, Any] = {
        "path": stored,
        "reference": str(stored),
        "checkpoint": open_checkpoint(stored),
        "module": Model(tensors[0]),
        "decomposed": read_decomposition(folders[0]),
    }
    found = compare(places[kind], tensors[1], include=FEW, **SETTINGS).layers
    same = [column for column in two.layers if column not in ("from", "to")]
    # Factors on disk give float32 weights back to some 1e-7 of a typical entry.
    exactly = {"check_exact": True} if kind != "decomposed" else {"rtol": 1e-2, "atol": 1e-4}
    left, right = (table[same].drop(columns=["unchanged", "floor_unchanged"]) for table in (found, two.layers))
    pd.testing.assert_frame_equal(left, right, **exactly)
    assert found["from"][0] == {"module": "Model"}.get(kind, "base")


def test_three_decomposed_folders_give_the_bytes_of_the_measures_of_each_weight(
    folders: Folders, tmp_path: Path
) -> None:
    opened = open_chain(*folders, include=FEW)
    groups = make_groups(opened.names)
    labels = {name: group.label for group in groups for name in group.members}
    rows = []
    for name in opened.names:
        base, stage1, stage2 = weights = opened.read(name, torch.device("cpu"))
        row = measure_weight(name, (base, stage1, stage2), k=K, seed=42)
        row = with_null(row, null_columns(name, (base, stage1, stage2), row, seed=42, draws=2))
        rows.append({"weight": name, "module": labels[name], "layer": layer_index(name)} | row)
        assert not any(weight.exact for weight in weights)
    write_csv(tmp_path / "expected.csv", typed(pd.DataFrame(rows)))
    compare(*folders, include=FEW, **SETTINGS).save(tmp_path, details=False)
    assert (tmp_path / "layers.csv").read_bytes() == (tmp_path / "expected.csv").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {*TABLES, "expected.csv"}


def test_three_streamed_checkpoints_give_the_table_of_their_factors(
    comparison: Comparison, chain: list[dict[str, Tensor]]
) -> None:
    streamed = compare(*chain[:3], include=SMALL, **SETTINGS).layers
    numbers = [c for c in streamed if "unchanged" not in c and not c.endswith(("_null_std", "_z"))]
    pd.testing.assert_frame_equal(streamed[numbers], comparison.layers[numbers], rtol=1e-2, atol=1e-4)


def test_links_of_three_are_those_of_two_and_of_four(
    two: Comparison, four: Comparison, chain: list[dict[str, Tensor]]
) -> None:
    three = compare(*chain[:3], include=FEW, **SETTINGS)
    links = three.links
    assert list(links) == list(two.links)
    assert list(links["weight"].iloc[:2]) == [two.layers["weight"][0]] * 2
    first = links[links["from"] == "base"].reset_index(drop=True)
    same = [c for c in two.links if c not in ("from", "to")]
    pd.testing.assert_frame_equal(first[same], two.layers[same], check_exact=True)
    assert list(links["to"].iloc[:2]) == ["stage1", "stage2"]
    of_four = four.links[four.links["to"] != "state_dict (4)"].reset_index(drop=True)
    measured = ["weight", *(c for c in MEASURED if c in links), *COMMON]
    pd.testing.assert_frame_equal(of_four[measured], links[measured], check_exact=True)


def test_equal_neighbours_have_no_update(chain: list[dict[str, Tensor]]) -> None:
    same = {name: tensor.clone() for name, tensor in chain[0].items()}
    found = compare(chain[0], same, include="v_proj", **SETTINGS)
    assert found.summary == ["state_dict (1) -> state_dict (2): no weight moved"]
    row = found.layers
    assert (row[["update_norm", "nss", "principal_energy", "intruders"]] == 0).all().all()
    assert (row["unchanged"] == 1).all()
    assert row["angle_mean"].max() < 1e-12
    assert row["principal_energy_null_mean"].isna().all()


def test_what_is_read_is_exact() -> None:
    """One entry in a thousand moved by 1e-12 of itself, in float64: float32 factors could not tell."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(64, 48, generator=generator, dtype=torch.float64)
    moved = torch.rand(w.shape, generator=generator) < 0.01
    tuned = torch.where(moved, w * (1 + 1e-12), w)
    row = compare({"x.weight": w}, {"x.weight": tuned}, null_draws=0, k=4).layers.iloc[0]
    assert row["unchanged"] == 1 - moved.double().mean().item()
    assert row["update_norm"] == pytest.approx(((tuned - w).norm() / w.norm()).item(), rel=1e-6)
    chain = open_chain({"x.weight": w}, {"x.weight": tuned})
    a, b = chain.read("x.weight", torch.device("cpu"))
    assert not a.noise.any()
    assert torch.equal(subtract(b, a), (tuned - w).float())
    assert Weight(a.svd, a.dense).noise.any()  # had back from factors


def test_a_planted_update_of_the_leading_directions_is_told_from_random_ones() -> None:
    w = torch.randn(96, 64, generator=torch.Generator().manual_seed(1))
    u, s, vh = torch.linalg.svd(w, full_matrices=False)
    tuned = w + 0.1 * (u[:, :4] * s[:4]) @ vh[:4]
    row = compare({"x.weight": w}, {"x.weight": tuned}, null_draws=3, k=4).layers.iloc[0]
    assert row["principal_energy"] == pytest.approx(96 * 64 / 16, rel=1e-4)
    assert row["principal_energy_z"] > 5
    assert row["angle_mean"] < 1e-3  # the directions stay
    assert row["update_stable_rank"] < row["update_stable_rank_null_mean"]


def test_what_is_saved_is_read_again(two: Comparison, four: Comparison, comparison: Comparison, tmp_path: Path) -> None:
    for name, found in (("two", two), ("four", four), ("three", comparison)):
        found.save(tmp_path / name)
        read = Comparison.load(tmp_path / name)
        for table in ("layers", "modules", "curves", "links"):
            pd.testing.assert_frame_equal(getattr(read, table), getattr(found, table), check_exact=True)
        assert (read.metrics, read.groups, read.notes) == (found.metrics, found.groups, found.notes)
        assert read.headline == found.headline
        assert {n: s.tolist() for n, s in read.spectra.items()} == {n: s.tolist() for n, s in found.spectra.items()}
        read.save(tmp_path / "again", details=False)
        read.save_links(tmp_path / "again")
        for path in (tmp_path / "again").iterdir():
            assert (tmp_path / name / path.name).read_bytes() == path.read_bytes(), path.name
    assert {p.name for p in (tmp_path / "three").iterdir()} == {*TABLES, *PICTURES, LINKS, SPECTRA}
    assert {p.name for p in (tmp_path / "two").iterdir()} == {*TABLES, *PICTURES[1:], LINKS, SPECTRA}


def test_a_folder_without_details_is_read_too(comparison: Comparison, saved: Path, tmp_path: Path) -> None:
    read = Comparison.load(saved)
    pd.testing.assert_frame_equal(read.links, comparison.links, check_exact=True)
    with pytest.raises(SettingError, match="plot 'spectra': not among what was loaded"):
        read.plot("spectra")
    with pytest.raises(ValueError, match="layers.csv: missing"):
        Comparison.load(tmp_path)


def test_figures(two: Comparison, four: Comparison, comparison: Comparison) -> None:
    for found in (two, four, comparison):
        for kind in ("angles", "spectra", "updates"):
            assert isinstance(found.plot(kind), Figure)
    assert isinstance(comparison.plot("rotation"), Figure)
    with pytest.raises(
        SettingError, match="plot 'rotation' of 2 checkpoints: allowed are angles, spectra, updates, null_scores"
    ):
        two.plot("rotation")


def test_unchanged_entries_are_counted_by_their_bits() -> None:
    """A zero that changed its sign is another entry; a number that float32 cannot tell from 0 too; bf16 in float32 is
    the same number."""
    w = torch.randn(8, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    w[0] = 0.0
    signed, tiny = w.clone(), w.clone()
    signed[0, :3] = -0.0
    tiny[0, :2] = 1e-60
    wide = w.bfloat16()
    for a, b, changed in ((w, signed, 3), (w, tiny, 2), (wide, wide.float(), 0), (wide, tiny, 42 + 2)):
        row = compare({"x.weight": a}, {"x.weight": b}, null_draws=0, k=2).layers.iloc[0]
        assert row["unchanged"] * w.numel() == pytest.approx(w.numel() - changed)


def test_draws_are_three_where_they_are_cheap(chain: list[dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_chain(*chain[:2], include="v_proj")
    auto = Settings(null_draws="auto", null_models=("permuted",))
    assert auto.for_chain(opened).null_draws == 3
    monkeypatch.setattr("subspacelab.rotation.measuring.AFFORDABLE", 0)
    assert auto.for_chain(opened).null_draws == 1
    found = compare(*chain[:2], include="v_proj", null_draws="auto", null_models=["permuted"])
    assert found.metrics["null"]["draws"] == 1
    assert found.metrics["null"]["further_models"] == ["permuted"]


def test_further_models_add_columns_and_change_none(two: Comparison, chain: list[dict[str, Tensor]]) -> None:
    found = compare(*chain[:2], include=FEW, null_models=["permuted", "spectrum"], **SETTINGS)
    pd.testing.assert_frame_equal(found.layers[list(two.layers)], two.layers, check_exact=True)
    added = [column for column in found.layers if column not in two.layers]
    assert added == [c for c in MEASURED if "_spectrum_" in c or "_permuted_" in c]
    assert found.layers[[c for c in added if c.endswith("_mean")]].notna().all().all()
    three = compare(*chain[:3], include=FEW, null_models=["permuted", "spectrum"], **SETTINGS)
    first = three.links[three.links["from"] == "base"].reset_index(drop=True)
    pd.testing.assert_frame_equal(first[added], found.layers[added], check_exact=True)
    (sentence,) = found.summary
    assert sentence.startswith("state_dict (1) -> state_dict (2): as theirs on average, and so no finding: angle_mean,")


def test_large_square_weights_of_three_are_identities_without_a_number(
    chain: list[dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their leading triples alone are computed; all else is what all triples give."""
    few: dict[str, Any] = {"k": 2, "null_draws": 2, "include": "o_proj", "device": "cpu"}
    expected = compare(*chain[:3], **few).layers
    monkeypatch.setattr("subspacelab.rotation.leading.SMALLEST", 40)
    found = compare(*chain[:3], **few)
    blank = [c for c in found.layers if c.startswith(("rotation", "random_mse", "oracle", "floor_rotation"))]
    assert found.layers[blank].isna().all().all()
    assert found.layers["identity_U"].all()
    rest = [c for c in found.layers if c not in blank]
    pd.testing.assert_frame_equal(found.layers[rest], expected[rest], rtol=1e-4, atol=1e-6)
    for kind in ("rotation", "null_scores"):
        assert isinstance(found.plot(kind), Figure)


@pytest.mark.parametrize(("weight", "long", "short"), [("down_proj", "Vh", "U"), ("up_proj", "U", "Vh")])
def test_rotations_of_large_weights_are_composed_from_their_spaces(
    weight: str, long: str, short: str, chain: list[dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    few: dict[str, Any] = {
        "k": 2,
        "null_draws": 2,
        "null_models": ["spectrum"],
        "include": rf"model\.layers\..*{weight}",
        "device": "cpu",
    }
    expected = compare(*chain[:3], **few).layers
    monkeypatch.setattr("subspacelab.rotation.leading.SMALLEST", 40)
    found = compare(*chain[:3], **few).layers
    columns = [f"{c}_{long}" for c in ("rotation_mse", "rotation_rel", "random_mse", "floor_rotation_mse")]
    columns += [f"rotation_{c}_{long}_{d}" for c in ("mse", "rel") for d in ("null_mean", "null_std", "spectrum_mean")]
    assert (found[columns] > 0).all().all()
    columns += [f"rotation_{c}_{long}_spectrum_std" for c in ("mse", "rel")]
    scores = [f"rotation_{c}_{long}_{d}" for c in ("mse", "rel") for d in ("z", "spectrum_z")]
    # Bases are stored in float32: their rounding, 1e-7 of a tilt of 1e-6, is in what is expected.
    pd.testing.assert_frame_equal(found[columns], expected[columns], rtol=1e-3, atol=0)
    pd.testing.assert_frame_equal(found[scores], expected[scores], rtol=1e-3, atol=1e-5)  # one of them is near 0
    # Where every space is the whole, nothing is computed; the oracle's error is rounding, and smaller.
    blank = [f"{c}_{short}" for c in ("rotation_mse", "rotation_rel", "random_mse", "oracle_mse", "floor_rotation_mse")]
    assert found[blank].isna().all().all()
    assert (found[f"oracle_mse_{long}"] < expected[f"oracle_mse_{long}"]).all()
    rest = [c for c in found if c not in (*columns, *scores, *blank, f"oracle_mse_{long}")]
    pd.testing.assert_frame_equal(found[rest], expected[rest], rtol=1e-4, atol=1e-6)
    assert not found[rest].equals(expected[rest])  # another way to the same numbers


def test_directions_that_the_entries_do_not_determine_tilt_no_space(monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns that stand twice, in every checkpoint: of full rank are only 44 of 48 directions."""
    generator = torch.Generator().manual_seed(0)
    states, w = [], torch.zeros(120, 48)
    for scale in (1.0, 1e-3, 1e-3):
        w = w + scale * torch.randn(w.shape, generator=generator)
        w[:, 44:] = w[:, :4]
        states.append({"x.weight": w})
    full = compare(*states, k=2, null_draws=3, device="cpu").layers.iloc[0]
    monkeypatch.setattr("subspacelab.rotation.leading.SMALLEST", 40)
    found = compare(*states, k=2, null_draws=3, device="cpu").layers.iloc[0]
    assert pd.isna(found["rotation_mse_Vh"])  # the large weight's way
    for column in ("rotation_mse_U", "rotation_mse_U_null_mean", "floor_rotation_mse_U"):
        assert found[column] == pytest.approx(full[column], rel=1e-3), column


def test_the_picture_of_scores(four: Comparison, comparison: Comparison) -> None:
    layers = comparison.layers
    scores, there, marked = score_grid(layers, comparison.groups, ["principal_energy_02"], 2)
    assert scores.shape == there.shape == (len(comparison.groups), 3)
    for i, group in enumerate(comparison.groups):
        for at, layer in enumerate((None, 0, 1)):
            members = [name for name, of in group.members.items() if of == layer]
            rows = layers[layers["weight"].isin(members)]
            assert there[i, at] == bool(members)
            if members:
                assert scores[i, at] == pytest.approx(rows["principal_energy_02_z"].mean())
                entries = comparison.metrics["null"]["standing_out"]
                out = {e["weight"] for e in entries if e["measure"] == "principal_energy_02"}
                assert marked[i, at] == bool(out & set(members))
    for found in (four, comparison):
        assert isinstance(found.plot("null_scores"), Figure)


def test_weights_outside_all_layers_are_drawn_and_tracked(tmp_path: Path) -> None:
    w = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
    found = compare({"x.weight": w, "y.weight": 0 * w}, {"x.weight": 1.1 * w, "y.weight": w}, k=2, null_draws=1)
    found.save(tmp_path)
    log_curves(found, lambda metrics, step: pytest.fail("there is no curve"))
    assert Comparison.load(tmp_path).curves.empty


def test_long_chains_are_summarised_link_by_link(four: Comparison) -> None:
    assert len(four.metrics["links"]) == 3
    assert len(four.layers) == 3 * four.layers["weight"].nunique()
    assert list(four.modules["module"].unique())[-1] == "V"
    rows = four.modules[four.modules["module"] == "V"]
    wanted = four.layers[four.layers["weight"].str.contains("v_proj")].groupby("to")["update_norm"].mean()
    assert rows.set_index("to")["update_norm_mean"].to_dict() == pytest.approx(wanted.to_dict())
    assert set(four.headline) == {
        *("update_norm", "unchanged", "angle_mean", "angle_mean_ratio", "angle_mean_z"),
        *("leading_energy", "leading_energy_z"),
    }


@pytest.mark.parametrize(
    ("places", "settings", "said"),
    [
        (("one",), {}, "1 checkpoint to compare; give two"),
        (({"a.weight": torch.eye(3)}, {"b.weight": torch.eye(3)}), {}, "share no weight of one shape and rank"),
        (({"a.weight": torch.eye(3)},) * 2, {"include": "("}, "include='(': not a regular expression"),
        (({"a.weight": torch.eye(3)},) * 2, {"include": "b"}, "no weight is left to decompose with include='b'"),
        (({"a.weight": torch.full((3, 3), torch.nan)},) * 2, {}, "a.weight: 9 NaN and 0 infinite"),
        (({"a.weight": torch.ones(3, 3, dtype=torch.int8)},) * 2, {}, "a.weight: quantised"),
        (({"a.weight": torch.eye(3)}, "no/such/place"), {}, "no/such/place: no such checkpoint"),
    ],
)
def test_bad_input_is_one_line(places: tuple[Any, ...], settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as e:
        compare(*places, **settings)
    assert said in str(e.value)
    assert "\n" not in str(e.value)
