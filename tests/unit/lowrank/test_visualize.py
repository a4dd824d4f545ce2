"""Pictures of a test picture's channels and errors, and the rank curve against numpy."""

from pathlib import Path

import numpy as np
import pytest
from tests.unit.lowrank.caches import write_random_cache
from tests.unit.lowrank.trainings import SEED, train_tiny

from subspacelab.core.files import read_json
from subspacelab.lowrank.baselines import CONTROLS, PCA_BASIS, SVD
from subspacelab.lowrank.comparison import compare
from subspacelab.lowrank.features import Features, split_rows
from subspacelab.lowrank.plots import draw_views, view_names
from subspacelab.lowrank.preparation import feature_statistics
from subspacelab.lowrank.state import load_model
from subspacelab.lowrank.visualization import Views, visualize

RANK = 4


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Features:
    return write_random_cache(tmp_path_factory.mktemp("cache"), count=40, dim=20, pictures=True)


@pytest.fixture(scope="module")
def results(features: Features, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    for arch in ("MLP", "Sketch"):
        train_tiny(features, folder, arch, epochs=1)
    return folder


@pytest.fixture(scope="module")
def views(features: Features, results: Path) -> Views:
    return visualize(features, results, rank=RANK, image_idx=1, channels=3)


def held_out(features: Features) -> list[np.ndarray]:
    rows = split_rows(list(features.index["sha256"]), SEED)["test"]
    return [x.double().numpy() for x in features.read(rows)]


@pytest.mark.slow
def test_four_pictures_and_the_curve_are_written(views: Views, tmp_path: Path) -> None:
    views.save(tmp_path)
    pictures = draw_views(tmp_path, views)
    names = ["channels_1.png", "errors_1.png", "overlay_1.png", "rank_curve.png"]
    assert [path.name for path in pictures] == names == view_names(1)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)
    assert {path.name for path in tmp_path.iterdir()} == {*names, "rank_curve.json"}
    assert read_json(tmp_path / "rank_curve.json") == views.curve


def test_the_curve_of_the_svd_is_numpys(features: Features, views: Views) -> None:
    values = [np.linalg.svd(x, compute_uv=False) for x in held_out(features)]
    expected = {str(rank): np.mean([np.linalg.norm(s[:rank]) / np.linalg.norm(s) for s in values]) for rank in (8, 16)}
    assert views.curve[SVD] == pytest.approx(expected, rel=1e-6)  # the features were scaled in float32
    assert views.curve[SVD]["16"] == pytest.approx(1, abs=1e-12)  # 16 tokens: nothing is left out


def test_the_curve_of_the_one_basis_is_numpys(features: Features, results: Path, views: Views) -> None:
    normalisation = load_model(results / "MLP").network.spec.normalisation
    v = feature_statistics(features, features.split(SEED)["train"], normalisation.kind).basis[:, :8].numpy()
    expected = np.mean([np.linalg.norm(x @ v @ v.T) / np.linalg.norm(x) for x in held_out(features)])
    assert views.curve[PCA_BASIS]["8"] == pytest.approx(expected, rel=1e-6)  # the features were scaled in float32


def test_controls_lie_below_the_svd_at_every_rank(views: Views) -> None:
    for control in CONTROLS:
        assert set(views.curve[control]) == {"8", "16"}
        assert all(views.curve[control][r] <= views.curve[SVD][r] + 1e-6 for r in ("8", "16"))  # float32


def test_networks_stand_at_their_rank_with_the_cosine_of_the_comparison(
    features: Features, results: Path, views: Views
) -> None:
    methods = compare(features, results, rank=RANK).metrics["methods"]
    for arch in ("MLP", "Sketch"):
        # The same float32 forward on the same batches; sums in another order.
        assert views.curve[arch] == {"4": pytest.approx(methods[arch]["cosine"]["mean"], rel=1e-9)}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"image_idx": 4}, "image_idx: 4, there are test pictures 0 to 3"),
        ({"image_idx": -1}, "image_idx: -1"),
        ({"channels": 21}, "channels: 21, the features have 1 to 20"),
        ({"channels": 0}, "channels: 0"),
        ({"rank": 5}, "holds rank 4, asked for 5"),
        ({"archs": ["AdaLoRA"]}, "no trained model there"),
        ({"archs": ["nosuch"]}, "no such architecture"),
    ],
)
def test_what_there_is_not_is_refused(features: Features, results: Path, given: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said) as e:
        visualize(features, results, **{"rank": RANK} | given)
    assert "\n" not in str(e.value)


def test_pictures_of_four_tokens_have_a_curve_too(tmp_path: Path) -> None:
    small = write_random_cache(tmp_path / "cache", tokens=4, dim=6, pictures=True)
    train_tiny(small, tmp_path, "Sketch", rank=2, epochs=1)
    curve = visualize(small, tmp_path, rank=2, channels=2).curve
    assert curve["Sketch"].keys() == {"2"}
    assert curve[SVD]["2"] >= curve["Sketch"]["2"] - 1e-6  # the network computes in float32
