import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.linalg import subspace_angles
from tests.tiny import LAYOUTS, tiny_qwen_vl_tensors
from tests.unit.rotation.chains import chain_tensors, decompose_chain
from tests.unit.rotation.conftest import MODULES

from subspacelab.plotting.terminal import progress_bar
from subspacelab.rotation.aggregate import note_limits
from subspacelab.rotation.chain import open_chain
from subspacelab.rotation.comparison import TABLES, Comparison, compare
from subspacelab.rotation.groups import make_groups
from subspacelab.rotation.logging import log_curves
from subspacelab.rotation.measuring import Settings, measure_chain
from subspacelab.rotation.null_model import MEASURES, SUFFIXES
from subspacelab.rotation.plots import PICTURES, draw_pictures

Folders = tuple[Path, Path, Path]
K = 8
Q = "model.layers.0.self_attn.q_proj.weight"


def table(folders: Folders, **settings: Any) -> pd.DataFrame:
    chain = open_chain(*folders)
    return measure_chain(chain, make_groups(chain.names), Settings(device="cpu", **settings)).layers


def matrices(tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: t.reshape(len(t), -1).double().numpy() for name, t in tensors.items() if t.ndim >= 2}


@pytest.fixture(scope="module")
def layers(folders: Folders) -> pd.DataFrame:
    return table(folders, k=K, null_draws=2)


def test_every_promised_column_is_there(layers: pd.DataFrame) -> None:
    sides, pairs = ("U", "Vh"), ("01", "12", "02")
    promised = {"weight", "module", "layer", "m", "n", "rank", "k", "gap_k", "cosine_01_12"}
    for rotation in ("rotation_mse", "rotation_rel", "identity", "random_mse", "oracle_mse", "floor_rotation_mse"):
        promised |= {f"{rotation}_{side}" for side in sides}
    for angle in ("angle_max", "angle_mean"):
        promised |= {f"{angle}_{pair}{side}" for pair in pairs for side in ("", "_U", "_Vh")}
        promised |= {f"floor_{angle}{side}" for side in ("", "_U", "_Vh")}
    changes = ("nss", "update_norm", "update_stable_rank", "unchanged", "principal_energy", "intruders")
    promised |= {f"{change}_{pair}" for change in changes for pair in pairs} | {f"floor_{c}" for c in changes}
    nulls = {f"{measure}_{suffix}" for measure in MEASURES for suffix in SUFFIXES}
    assert set(layers.columns) == promised | nulls
    assert list(layers)[(i := list(layers).index("nss_02")) : i + 4] == [
        *("nss_02", "nss_02_null_mean", "nss_02_null_std", "nss_02_z")
    ]
    layers = layers.drop(columns=list(nulls))
    largest = [c for c in layers if "angle_max" in c]
    assert not layers.drop(columns=["layer", *largest]).isna().any().any()
    assert layers["gap_k"].between(1.05, np.inf).any()
    for column in largest:  # where the gap at k is narrow the largest angle tells nothing
        assert (layers[column].isna() == (layers["gap_k"] < 1.05)).all()


def test_angles_agree_with_scipy_on_the_stored_weights(layers: pd.DataFrame) -> None:
    base, stage1, _ = (matrices(tensors) for tensors in chain_tensors())
    for row in layers.itertuples():
        (ua, _, va), (ub, _, vb) = (np.linalg.svd(c[row.weight], full_matrices=False) for c in (base, stage1))
        left = np.degrees(subspace_angles(ua[:, :K], ub[:, :K]))
        right = np.degrees(subspace_angles(va[:K].T, vb[:K].T))
        # Float32 factors are 1e-8 of an entry off, which a gap of 1e-2 makes 1e-6 rad.
        assert row.angle_mean_01_U == pytest.approx(left.mean(), abs=1e-3)
        assert row.angle_mean_01_Vh == pytest.approx(right.mean(), abs=1e-3)
        if row.gap_k >= 1.05:
            assert row.angle_max_01_U == pytest.approx(left.max(), abs=1e-3)
            assert row.angle_max_01_Vh == pytest.approx(right.max(), abs=1e-3)


def test_updates_agree_with_numpy_on_the_stored_weights(layers: pd.DataFrame) -> None:
    base, stage1, stage2 = (matrices(tensors) for tensors in chain_tensors())
    for row in layers.itertuples():
        w0, w1, w2 = base[row.weight], stage1[row.weight], stage2[row.weight]
        d01, d12 = w1 - w0, w2 - w1
        # Entries come back within 1e-7 of the weight, the update being 2e-2 of it.
        assert row.update_norm_01 == pytest.approx(np.linalg.norm(d01) / np.linalg.norm(w0), rel=1e-5)
        stable_rank = (np.linalg.norm(d12) / np.linalg.norm(d12, 2)) ** 2
        assert row.update_stable_rank_12 == pytest.approx(stable_rank, rel=1e-4)
        cosine = (d01 * d12).sum() / np.linalg.norm(d01) / np.linalg.norm(d12)
        assert row.cosine_01_12 == pytest.approx(cosine, abs=1e-5)


def test_mirsky_weyl_and_the_triangle_hold(folders: Folders, layers: pd.DataFrame) -> None:
    decompositions = open_chain(*folders).checkpoints
    slack = 1 + 1e-5  # float32 spectra
    for row in layers.to_dict("records"):
        spectra = [d.spectrum(row["weight"]).double().numpy() for d in decompositions]
        for pair, (a, b) in {"01": (0, 1), "12": (1, 2), "02": (0, 2)}.items():
            assert row[f"nss_{pair}"] <= row[f"update_norm_{pair}"] * slack  # Mirsky
            frobenius = row[f"update_norm_{pair}"] * np.linalg.norm(spectra[a])
            spectral = frobenius / math.sqrt(row[f"update_stable_rank_{pair}"])
            assert np.abs(spectra[b] - spectra[a]).max() <= spectral * slack  # Weyl
        for side in ("U", "Vh"):
            # The sum of the principal angles is a distance of subspaces (Qiu, Zhang & Li 2005).
            angles = [row[f"angle_mean_{pair}_{side}"] for pair in ("01", "12", "02")]
            assert angles[2] <= (angles[0] + angles[1]) * slack


def test_equal_checkpoints_give_zero_everywhere(tmp_path: Path) -> None:
    same = tiny_qwen_vl_tensors(dtype=torch.bfloat16)
    layers = table(decompose_chain(tmp_path, (same, same, same)), k=K)
    zero = [c for c in layers if c.startswith(("nss", "update", "principal_energy", "intruders", "cosine"))]
    assert (layers[zero] == 0).all().all()
    assert (layers[["unchanged_01", "unchanged_12", "unchanged_02"]] == 1).all().all()
    angles = [c for c in layers if c.startswith("angle")]
    assert layers[angles].max().max() < 1e-12  # degrees: float64 rounding of orthonormal bases
    # Float32 bases are orthonormal to 1e-7, whose square is the mean squared entry.
    assert layers[[c for c in layers if c.startswith("rotation_mse")]].to_numpy().max() < 1e-13
    assert layers["floor_update_norm"].min() > 1e-4  # the floor is there all the same


def test_what_did_not_move_has_no_update_in_whatever_types_it_is_stored(tmp_path: Path) -> None:
    """The weights of one checkpoint as bf16, float32 and fp16 with 1 % of one weight's entries one step further."""
    same = {n: t.half().bfloat16() for n, t in tiny_qwen_vl_tensors(dtype=torch.bfloat16).items()}
    moved = {name: t.clone().half() for name, t in same.items()}
    chosen = torch.rand(moved[Q].shape, generator=torch.Generator().manual_seed(0)) < 0.01
    moved[Q][chosen] = torch.nextafter(moved[Q].float(), torch.tensor(9.0)).half()[chosen] + 2**-9
    chain = decompose_chain(tmp_path, (same, {n: t.float() for n, t in same.items()}, moved), include=r"[qv]_proj")
    layers = table(chain, k=K).set_index("weight")
    update = [c for c in layers if c.startswith(("update_", "principal_energy", "cosine", "nss"))]
    still = layers.drop(index=Q)
    assert (still[update] < 1e-7).all().all()
    assert (still[[c for c in update if not c.startswith("nss")]] == 0).all().all()
    assert (still[["unchanged_01", "unchanged_12", "unchanged_02"]] == 1).all().all()
    truth = 1 - chosen.double().mean().item()
    assert layers.loc[Q, ["unchanged_01", "unchanged_12", "unchanged_02"]].tolist() == [1, truth, truth]
    opened = open_chain(*chain)
    (types, *_) = notes = note_limits(table(chain, k=K), opened)
    assert types.startswith(f"{len(opened.names)} weights are stored as BF16 in base, F32 in stage1, F16 in stage2:")
    assert any("32 bits or more" in note for note in notes)


def test_the_same_bytes_share_their_factors(tmp_path: Path) -> None:
    """However they were decomposed: digests prove that nothing moved."""
    base, stage1, _ = chain_tensors()
    chain = open_chain(*decompose_chain(tmp_path, (base, stage1, base)))
    first, second, third = chain.read(Q, torch.device("cpu"))
    assert third is first
    assert second is not first


def test_the_floor_of_bf16_storage_is_that_of_rounding(tmp_path: Path) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        base, _, _ = decompose_chain(tmp_path / str(dtype), [tiny_qwen_vl_tensors(dtype=dtype)] * 3, include="qkv")
        floor = table((base, base, base), k=K)["floor_update_norm"]
        # Uniform errors within half a step: 2^-7 / sqrt(12) of an entry at the low end of its binade, half that on top.
        assert floor.between(2**-8 / math.sqrt(12), 2**-7 / math.sqrt(12)).all()


def test_all_layouts_give_the_same_table(layers: pd.DataFrame, tmp_path: Path) -> None:
    """`layers` is of three checkpoints in the first layout; here each has another of the other three."""
    other = table(decompose_chain(tmp_path, chain_tensors(), layouts=LAYOUTS[1:]), k=K, null_draws=2)
    pd.testing.assert_frame_equal(other, layers, check_exact=True)


def test_a_chain_built_to_compose_gives_zero(tmp_path: Path) -> None:
    """Stage 1 rescales every weight from the right: its left singular subspace is the base's."""
    generator = torch.Generator().manual_seed(0)
    tall = "model.layers.0.mlp.up_proj.weight"
    base, _, end = chain_tensors()
    mix = torch.eye(48) + 0.1 * torch.randn(48, 48, generator=generator)
    middle = base | {tall: base[tall] @ mix}
    layers = table(decompose_chain(tmp_path, (base, middle, end)), k=K).set_index("weight")
    row = layers.loc[tall]
    assert not row["identity_U"]
    assert row["rotation_mse_U"] < 1e-13  # float32 factors, squared
    assert row["random_mse_U"] > 1e-3
    assert row["angle_mean_01_U"] > 0.1  # the leading directions do turn within the subspace


def test_all_files_are_written(saved: Path) -> None:
    assert {path.name for path in saved.iterdir()} == {*TABLES, *PICTURES}
    for picture in PICTURES:
        assert (saved / picture).read_bytes().startswith(b"\x89PNG")


def test_tables_are_read_as_written(comparison: Comparison, saved: Path, layers: pd.DataFrame) -> None:
    read = pd.read_csv(saved / "layers.csv", dtype={"layer": "Int64"})
    pd.testing.assert_frame_equal(read, comparison.layers, check_exact=True, check_dtype=False)
    pd.testing.assert_frame_equal(comparison.layers, layers, check_exact=True)
    modules = pd.read_csv(saved / "modules.csv").set_index("module")
    assert modules.loc["language Q", "num_weights"] == 2
    expected = layers.loc[layers["module"] == "language Q", "nss_02"]
    assert modules.loc["language Q", "nss_02_mean"] == pytest.approx(expected.mean(), rel=1e-12)
    assert modules.loc["block 0", "num_weights"] == 2
    curves = pd.read_csv(saved / "curves.csv")
    assert list(curves.loc[curves["module"] == "vision QKV", "layer"]) == [0, 1]
    assert "block 0" not in set(curves["module"])


def test_metrics_keep_identities_apart(comparison: Comparison, saved: Path) -> None:
    metrics = json.loads((saved / "metrics.json").read_text())
    assert metrics == comparison.metrics
    assert {"all", "groups", "identity", "unmatched", "k"} <= set(metrics)
    layers = comparison.layers
    proving = layers.loc[~layers["identity_U"], "rotation_mse_U"]
    assert metrics["all"]["rotation_mse_U"]["count"] == len(proving) > 0
    assert metrics["all"]["rotation_mse_U"]["mean"] == pytest.approx(proving.mean(), rel=1e-12)
    assert metrics["identity"]["rotation_mse_U"]["count"] == int(layers["identity_U"].sum()) > 0
    nothing = metrics["groups"]["language Q"]["rotation_mse_U"]
    assert (nothing["mean"], nothing["count"], nothing["null_mean"], nothing["null_count"]) == (None, 0, None, 0)
    assert metrics["unmatched"] == []
    assert any("square" in note for note in metrics["notes"])


def test_findings_lie_between_the_controls(comparison: Comparison) -> None:
    for side in ("U", "Vh"):
        rows = comparison.layers[~comparison.layers[f"identity_{side}"]]
        assert (rows[f"oracle_mse_{side}"] < rows[f"rotation_mse_{side}"]).all()
        assert (rows[f"rotation_mse_{side}"] < rows[f"random_mse_{side}"]).all()


def test_curves_are_logged_by_group_and_layer(comparison: Comparison) -> None:
    curves: list[tuple[int, dict[str, float]]] = []
    log_curves(comparison, lambda metrics, step: curves.append((step, dict(metrics))))
    assert [step for step, _ in curves] == [0, 1]
    table = comparison.curves.set_index(["module", "layer"])
    for step, metrics in curves:
        assert metrics["language V/nss_01"] == table.loc[("language V", step), "nss_01"]
        assert all(math.isfinite(value) for value in metrics.values())


@pytest.mark.slow
def test_two_runs_give_the_same_bytes(folders: Folders, saved: Path, tmp_path: Path) -> None:
    again = compare(*folders, k=K, modules=MODULES, null_draws=2, device="cpu")
    again.save(tmp_path, details=False)
    draw_pictures(tmp_path, again)
    for name in (*TABLES, *PICTURES):
        assert (tmp_path / name).read_bytes() == (saved / name).read_bytes(), name
    assert str(tmp_path) not in (tmp_path / "metrics.json").read_text()


def test_another_seed_moves_only_what_is_drawn(
    folders: Folders, layers: pd.DataFrame, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for limit in ("TOLD", "LONG"):
        monkeypatch.setattr(f"subspacelab.rotation.measuring.{limit}", 0)
    other = table(folders, k=K, seed=7, null_draws=2)
    assert not capsys.readouterr().err
    compare(*folders, k=K, null_draws=1, device="cpu", progress=progress_bar)
    said = capsys.readouterr().err  # what is long is said before, where progress is shown
    assert re.search(r"note: \d+ GFLOP, about .* minutes at the .* GFLOP/s of a trial; .* null models: fewer", said)
    same = [column for column in layers if not column.startswith("random_mse") and not column.endswith(SUFFIXES)]
    pd.testing.assert_frame_equal(other[same], layers[same], check_exact=True)
    assert not other["random_mse_U"].equals(layers["random_mse_U"])


@pytest.mark.slow
def test_truncated_factors_leave_the_updates_empty_and_say_so(tmp_path: Path) -> None:
    folders = decompose_chain(tmp_path, chain_tensors(), rank=K)
    found = compare(*folders, null_draws=2, device="cpu")
    layers = found.layers
    assert layers[[f"{measure}_null_mean" for measure in MEASURES]].isna().all().all()
    empty = [c for c in layers if c.startswith(("update_", "unchanged_", "principal_energy_", "cosine", "floor_"))]
    assert layers[empty].isna().all().all()
    assert layers[["angle_mean_01", "nss_02", "rotation_mse_U", "rotation_mse_Vh"]].notna().all().all()
    assert not layers[["identity_U", "identity_Vh"]].any().any()  # now every weight can prove something
    assert any("leading singular triples" in note for note in found.notes)
    assert found.metrics["all"]["update_norm_01"] == {"mean": None, "std": None, "count": 0}
    assert len(draw_pictures(tmp_path / "out", found)) == len(PICTURES)


def test_a_side_of_k_directions_is_noted(folders: Folders) -> None:
    layers = table(folders, k=24)
    assert any("has only k directions" in note for note in note_limits(layers, open_chain(*folders)))
    assert layers.set_index("weight").loc["model.layers.0.self_attn.v_proj.weight", "angle_mean_01_U"] < 1e-5


def test_pictures_and_tables_take_blanks_and_any_name(comparison: Comparison, saved: Path) -> None:
    assert 0 < comparison.layers["angle_max_01"].isna().sum() < len(comparison.layers)
    assert comparison.curves["angle_max_01"].isna().any()
    assert set(MODULES) <= set(pd.read_csv(saved / "modules.csv")["module"])
    assert "NaN" not in (saved / "metrics.json").read_text()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"k": 0}, "k=0: at least 1"),
        ({"null_draws": -1}, "null_draws=-1: 0 or more"),
        ({"modules": {"x": "visual.nothing.{}"}}, "module 'x': pattern 'visual.nothing.{}' matches no weight"),
        ({"device": "tpu"}, "device='tpu'"),
    ],
)
def test_bad_settings_are_one_line(folders: Folders, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as e:
        compare(*folders, **settings)
    assert said in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_gives_the_table_of_the_cpu(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    on_cuda = decompose_chain(tmp_path, chain_tensors(), device="cuda")
    tables = []
    for place, device in ((folders, "cpu"), (on_cuda, "cuda")):
        chain = open_chain(*place)
        tables.append(measure_chain(chain, make_groups(chain.names), Settings(k=8, device=device)).layers)
    # Both work in float64 on factors that are float32: 1e-7, which a narrow spectral gap makes some 1e-5.
    pd.testing.assert_frame_equal(tables[0], tables[1], rtol=1e-3, atol=1e-6)
