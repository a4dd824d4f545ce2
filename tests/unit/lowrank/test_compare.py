"""The table of the methods, against numpy, and what cannot be compared."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tests.unit.lowrank.caches import write_random_cache
from tests.unit.lowrank.trainings import train_tiny

from subspacelab.core.files import read_json, write_json
from subspacelab.lowrank import baselines
from subspacelab.lowrank.architectures import ALIASES
from subspacelab.lowrank.baselines import CONTROLS, PCA_BASIS, PCA_SKETCH, RANDOM_SKETCH, SVD, random_basis
from subspacelab.lowrank.comparison import CHANGE, MEASURES, TABLES, Comparison, compare
from subspacelab.lowrank.features import Features, split_rows
from subspacelab.lowrank.plots import COMPARISON, draw_comparison
from subspacelab.lowrank.state import load_model

RANK, SEED = 4, 3
PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Features:
    return write_random_cache(tmp_path_factory.mktemp("cache"), count=40, dim=20)


@pytest.fixture(scope="module")
def results(features: Features, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every architecture after an epoch; to be read only."""
    folder = tmp_path_factory.mktemp("results")
    for arch in ALIASES:
        train_tiny(features, folder, arch, epochs=1, seed=SEED)
    return folder


@pytest.fixture(scope="module")
def comparison(features: Features, results: Path, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return compare(features, results, rank=RANK)


@pytest.fixture
def copied(results: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(results, tmp_path / "results"))


def held_out(features: Features) -> list[int]:
    return split_rows(list(features.index["sha256"]), SEED)["test"]


def test_the_table_has_every_method_for_every_test_picture(features: Features, comparison: Comparison) -> None:
    images, rows = comparison.images, held_out(features)
    methods = [SVD, *ALIASES, *CONTROLS]
    assert list(images.columns) == ["method", "dataset_id", *MEASURES, CHANGE]
    assert list(comparison.metrics["methods"]) == methods
    assert len(rows) == 4
    names = set(features.index["dataset_id"][rows])
    assert {m: set(images[images["method"] == m]["dataset_id"]) for m in methods} == dict.fromkeys(methods, names)
    assert len(images) == len(methods) * len(rows)
    assert comparison.metrics["num_images"] == 4
    assert (comparison.metrics["rank"], comparison.metrics["normalisation"]) == (RANK, "rms")


def test_measures_of_one_picture_are_numpys(features: Features, results: Path, comparison: Comparison) -> None:
    row = held_out(features)[1]
    trained = load_model(results / "ResMLP").network
    normal = trained.spec.normalisation.apply(features.read([row]))
    x = normal[0].double().numpy()
    u, s, vh = np.linalg.svd(x)
    expected = {SVD: u[:, :RANK] * s[:RANK] @ vh[:RANK], "ResMLP": trained(normal)[2][0].detach().double().numpy()}
    best = np.linalg.norm(s[:RANK]) / np.linalg.norm(s)
    images = comparison.images
    for method, y in expected.items():
        (found,) = images[(images["method"] == method) & (images["dataset_id"] == f"picture-{row:04d}")].to_dict(
            "records"
        )
        cosine = (x * y).sum() / np.sqrt((x**2).sum() * (y**2).sum())
        share = ((x - y) ** 2).sum() / (x**2).sum()
        # The network computes in float32, and in a batch of another size here.
        assert found["cosine"] == pytest.approx(cosine, rel=1e-6)
        assert found["mse"] == pytest.approx(((x - y) ** 2).mean(), rel=1e-5)
        assert found["relative_error"] == pytest.approx(np.sqrt(share), rel=1e-5)
        assert found["explained_variance"] == pytest.approx(1 - share, rel=1e-5)
        assert found["share_of_svd"] == pytest.approx(cosine / best, rel=1e-6)
        assert found["residual_over_svd"] == pytest.approx(share / (1 - best**2), rel=1e-5)
        by_token = (x * y).sum(1) / (np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1))
        assert found["token_cosine"] == pytest.approx(by_token.mean(), rel=1e-6)


def test_the_svd_is_first_everywhere(comparison: Comparison) -> None:
    assert (comparison.images["share_of_svd"] <= 1 + 1e-6).all()  # networks compute in float32
    svd = comparison.images[comparison.images["method"] == SVD]
    np.testing.assert_allclose(svd["share_of_svd"], 1, rtol=0, atol=1e-12)  # float64


def test_the_files_hold_what_was_returned(comparison: Comparison, tmp_path: Path) -> None:
    folder = tmp_path
    comparison.save(folder)
    picture = folder / COMPARISON
    draw_comparison(picture, comparison)
    assert {path.name for path in folder.iterdir()} == {*TABLES, COMPARISON} == {*TABLES, "svd_nn_comparison.png"}
    assert read_json(folder / "metrics.json") == comparison.metrics
    pd.testing.assert_frame_equal(pd.read_csv(folder / "comparison.csv"), comparison.images)
    assert set(comparison.milliseconds) == set(comparison.metrics["flops_per_picture"]) == {SVD, *ALIASES, *CONTROLS}
    assert picture.read_bytes().startswith(PNG)
    cosine = comparison.images[comparison.images["method"] == "MLP"]["cosine"]
    expected = {"mean": pytest.approx(cosine.mean(), rel=1e-12), "std": pytest.approx(np.std(cosine), rel=1e-12)}
    assert comparison.metrics["methods"]["MLP"]["cosine"] == expected


def test_the_headline_has_the_optimum_the_sketch_and_the_best_network(comparison: Comparison, results: Path) -> None:
    headline, metrics = comparison.headline, comparison.metrics
    losses = {name: read_json(results / name / "best_model.json")["val_mse"] for name in ("ResMLP", "MLP", "AdaLoRA")}
    best = min(losses, key=losses.__getitem__)
    assert metrics["best_network"] == best  # on validation pictures, not on those of the table
    named = {"SVD": SVD, "Sketch": "Sketch", "network": best}
    assert headline == {f"cosine_{label}": metrics["methods"][m]["cosine"]["mean"] for label, m in named.items()}


def test_only_what_was_asked_for_is_compared_by_any_name(features: Features, results: Path, tmp_path: Path) -> None:
    metrics = compare(features, results, archs=["symmetric", "Sketch"], rank=RANK).metrics
    assert list(metrics["methods"]) == [SVD, "ResMLP", "Sketch", *CONTROLS]


def test_the_same_command_gives_the_same_numbers(
    features: Features, results: Path, comparison: Comparison, tmp_path: Path
) -> None:
    torch.manual_seed(99)
    again = compare(features, results, rank=RANK)
    for name, found in {"first": comparison, "again": again}.items():
        found.save(tmp_path / name)
    for name in TABLES:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "first" / name).read_bytes()


def test_raw_inputs_are_the_ablation_of_the_originals_first_fault(features: Features, tmp_path: Path) -> None:
    train_tiny(features, tmp_path, "ResMLP", epochs=1, seed=SEED, normalisation="layernorm")
    same, raw = (compare(features, tmp_path, rank=RANK, raw_inputs=f) for f in (False, True))
    assert (same.metrics["normalisation"], raw.metrics["normalisation"]) == ("layernorm", "none")
    for method in (SVD, "ResMLP"):
        one, other = (c.images[c.images["method"] == method]["cosine"] for c in (same, raw))
        assert (np.abs(one - other) > 1e-4).all(), method
    row = held_out(features)[0]
    s = np.linalg.svd(features.read([row])[0].double().numpy(), compute_uv=False)
    svd = raw.images[(raw.images["method"] == SVD) & (raw.images["dataset_id"] == f"picture-{row:04d}")]
    assert svd["cosine"].item() == pytest.approx(np.linalg.norm(s[:RANK]) / np.linalg.norm(s), rel=1e-12)  # float64


def test_one_scale_for_all_changes_no_cosine_of_the_svd(features: Features, results: Path, tmp_path: Path) -> None:
    scaled, raw = (compare(features, results, rank=RANK, raw_inputs=flag) for flag in (False, True))
    one, other = (c.images[c.images["method"] == SVD]["cosine"] for c in (scaled, raw))
    np.testing.assert_allclose(one, other, rtol=1e-6)  # scaling rounds each float32 feature


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"seed": 5}, "MLP: trained with seed 5, ResMLP with 3"),
        ({"normalisation": {"kind": "layernorm", "scale": 1.0}}, "MLP: its normalisation differs from that of ResMLP"),
        ({"normalisation": {"kind": "rms", "scale": 7.0}}, "MLP: its normalisation differs from that of ResMLP"),
        ({"rank": 5}, "MLP: weights and best_model.json do not fit"),
        ({"arch": "Sketch"}, "MLP: weights and best_model.json do not fit"),
        ({"normalisation": {"colour": 1}}, "best_model.json.normalisation.colour: no such key"),
    ],
)
def test_models_that_share_no_measure_are_refused(features: Features, copied: Path, changed: dict, said: str) -> None:
    path = copied / "MLP" / "best_model.json"
    write_json(path, read_json(path) | changed)
    with pytest.raises(ValueError, match=said) as e:
        compare(features, copied, rank=RANK)
    assert "\n" not in str(e.value)
    assert not (copied / "out").exists()


def test_another_rank_is_refused(features: Features, results: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds rank 4, asked for 6"):
        compare(features, results, rank=6)


def test_features_of_another_width_are_refused(results: Path, tmp_path: Path) -> None:
    other = write_random_cache(tmp_path / "cache", dim=12)
    with pytest.raises(ValueError, match=r"trained on \[16, 20\], .*cache holds \[16, 12\]"):
        compare(other, results, rank=RANK)


def test_without_a_trained_model_there_is_nothing_to_compare(features: Features, tmp_path: Path) -> None:
    for archs in ([], ["Sketch"]):
        with pytest.raises(ValueError, match="no trained model there"):
            compare(features, tmp_path, archs=archs, rank=RANK)


def test_the_random_sketch_takes_as_many_power_steps_as_the_trained_one(features: Features, tmp_path: Path) -> None:
    train_tiny(features, tmp_path, "MLP", epochs=1, power_steps=2)
    train_tiny(features, tmp_path, "Sketch", epochs=1, power_steps=0)
    both, alone = (
        compare(features, tmp_path, archs=archs, rank=RANK).metrics["methods"][RANDOM_SKETCH]
        for archs in (["MLP", "Sketch"], ["Sketch"])
    )
    assert both == alone


@pytest.mark.parametrize("start", ["pca", "random"])
def test_networks_that_training_left_where_they_began_changed_no_cosine(
    features: Features, tmp_path: Path, start: str
) -> None:
    for arch in ALIASES:  # this rate leaves every float32 parameter as it is
        train_tiny(features, tmp_path, arch, start=start, lr=1e-30, epochs=1)
    found = compare(features, tmp_path, rank=RANK)
    nothing = {"best_epoch": 1, CHANGE: 0.0, f"{CHANGE}_se": 0.0}
    assert found.metrics["training"] == dict.fromkeys(ALIASES, nothing)
    cosines = {name: table["cosine"].to_numpy() for name, table in found.images.groupby("method")}
    for arch in ALIASES:
        control = PCA_SKETCH if arch == "Sketch" else PCA_BASIS
        close = np.allclose(cosines[arch], cosines[control], rtol=0, atol=1e-6)  # float32 products in another order
        assert close == (start == "pca"), arch


def test_what_training_changed_is_paired_with_the_networks_own_start(comparison: Comparison) -> None:
    images = comparison.images
    for arch in ("Sketch", "MLP"):
        change = images[images["method"] == arch][CHANGE].to_numpy()
        control = PCA_SKETCH if arch == "Sketch" else PCA_BASIS
        cosines = [images[images["method"] == name]["cosine"].to_numpy() for name in (arch, control)]
        np.testing.assert_allclose(change, cosines[0] - cosines[1], rtol=0, atol=1e-6)  # float32, as above
        said = comparison.metrics["training"][arch]
        assert said[CHANGE] == pytest.approx(change.mean(), rel=1e-12)
        assert said[f"{CHANGE}_se"] == pytest.approx(change.std(ddof=1) / len(change) ** 0.5, rel=1e-12)
        assert said["best_epoch"] == 1
    assert images[images["method"].isin([SVD, *CONTROLS])][CHANGE].isna().all()


def test_where_the_svd_leaves_nothing_no_residual_is_compared(features: Features, tmp_path: Path) -> None:
    train_tiny(features, tmp_path, "Sketch", rank=16, epochs=1)
    found = compare(features, tmp_path, rank=16)
    assert (found.metrics["rank"], found.metrics["full_rank"]) == (16, 16)
    assert found.images["residual_over_svd"].isna().all()
    assert all("residual_over_svd" not in measures for measures in found.metrics["methods"].values())
    draw_comparison(tmp_path / "picture.png", found)
    assert (tmp_path / "picture.png").read_bytes().startswith(PNG)


def test_a_random_basis_keeps_its_share_of_the_dimensions_of_the_energy() -> None:
    dim, rank, draws = 40, 10, 400
    x = torch.randn(3, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shares = torch.tensor([(x @ random_basis(dim, rank, s)).square().sum() / x.square().sum() for s in range(draws)])
    assert abs(shares.mean() - rank / dim) < 5 * shares.std() / draws**0.5  # five standard errors


def test_a_network_is_not_judged_on_other_features_than_it_was_trained_on(copied: Path, tmp_path: Path) -> None:
    """A larger cache splits anew: its test pictures were among those that the network was trained on."""
    other = write_random_cache(tmp_path / "cache", count=60, dim=20)
    with pytest.raises(ValueError, match="trained on other features than those in .*cache"):
        compare(other, copied, rank=RANK)
    assert not (tmp_path / "out").exists()


def test_weights_that_were_damaged_since_are_told(features: Features, copied: Path, tmp_path: Path) -> None:
    weights = copied / "Sketch" / "best_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-40] + bytes(40))
    with pytest.raises(ValueError, match="is not what was trained; run the same `lowrank train` again"):
        compare(features, copied, rank=RANK)


def test_the_basis_of_the_training_is_not_computed_again(
    features: Features, comparison: Comparison, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [load_model(results / arch) for arch in ALIASES]
    assert all(model.basis is not None and model.basis.shape == (20, 16) for model in models)
    older = [replace(model, basis=None) for model in models]  # as of an earlier version: the same, computed
    pd.testing.assert_frame_equal(compare(features, older).images, comparison.images, check_exact=True)
    raw = compare(features, older, raw_inputs=True)  # of other features than those of the training
    pd.testing.assert_frame_equal(compare(features, models, raw_inputs=True).images, raw.images, check_exact=True)
    monkeypatch.setattr(baselines, "feature_statistics", None)
    pd.testing.assert_frame_equal(compare(features, models).images, comparison.images, check_exact=True)


def test_on_a_mac_it_is_computed_where_float64_is(
    features: Features, comparison: Comparison, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("auto", "mps"):
        found = compare(features, results, device=device)
        pd.testing.assert_frame_equal(found.images, comparison.images, check_exact=True)
    with pytest.raises(ValueError, match="device='cuda': not available"):
        compare(features, results, device="cuda")
