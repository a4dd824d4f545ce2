"""Channel maps: what a frame shows is the features, the numpy SVD at its rank, and the network's own output."""

import base64
from pathlib import Path

import numpy as np
import pytest
from tests.unit.lowrank.caches import write_random_cache
from tests.unit.lowrank.trainings import SEED, train_tiny

pytest.importorskip("plotly")

from subspacelab.lowrank.features import Features
from subspacelab.lowrank.state import load_model
from subspacelab.report.maps import FEATURES, MODELS, channel_maps
from subspacelab.report.page import Figure

UNIT = 0.001


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    features = write_random_cache(folder / FEATURES, count=40, dim=20, pictures=True)
    train_tiny(features, folder / MODELS, "Sketch", epochs=1)
    return folder


@pytest.fixture(scope="module")
def maps(root: Path) -> Figure:
    found = channel_maps(root, pictures=2, channels=3)
    assert found is not None
    return found


def decoded(maps: Figure, name: str, trace: int) -> np.ndarray:
    (frame,) = [frame for frame in maps.frames if frame["name"] == name]
    z = frame["data"][frame["traces"].index(trace)]["z"]
    return np.frombuffer(base64.b64decode(z["bdata"]), dtype="<i2").reshape(4, 4) * UNIT


def test_frames_hold_features_svd_and_network(root: Path, maps: Figure) -> None:
    features, network = Features(root / FEATURES), load_model(root / MODELS / "Sketch").network
    row = features.split(SEED)["test"][1]
    x = network.spec.normalisation.apply(features.read([row]))
    u, s, vh = np.linalg.svd(x[0].double().numpy(), full_matrices=False)
    ranks = [int(value) for value in maps.choices[2].values]
    assert ranks == [4, 8]
    best, own = (u[:, :8] * s[:8]) @ vh[:8], network(x)[2][0].detach().double().numpy()
    original = x[0].double().numpy()
    for shown, base in ((0, 0 * original), (1, original)):
        assert decoded(maps, f"1|2|{shown}", 1) == pytest.approx(original[:, 2].reshape(4, 4), abs=UNIT)
        assert decoded(maps, f"1|2|{shown}", 3) == pytest.approx((own - base)[:, 2].reshape(4, 4), abs=UNIT)
        assert decoded(maps, f"1|2|{shown}|1", 2) == pytest.approx((best - base)[:, 2].reshape(4, 4), abs=UNIT)


def test_every_position_of_the_sliders_has_its_frames(maps: Figure) -> None:
    sizes = {choice.name: range(len(choice.values)) for choice in maps.choices}
    assert {name: len(size) for name, size in sizes.items()} == {"channel": 3, "picture": 2, "rank": 2, "shown": 2}
    names = {frame["name"] for frame in maps.frames}
    picked = [
        {"channel": c, "picture": p, "rank": r, "shown": s}
        for c in range(3)
        for p in range(2)
        for r in range(2)
        for s in range(2)
    ]
    assert {template.format(**one) for one in picked for template in maps.chosen} == names


def test_more_channels_than_there_are_is_all_of_them(root: Path) -> None:
    found = channel_maps(root, pictures=1000, channels=1000)
    assert found is not None
    assert [len(choice.values) for choice in found.choices[:2]] == [20, 4]


def test_without_features_or_networks_there_are_none(tmp_path: Path, root: Path) -> None:
    assert channel_maps(tmp_path, pictures=1, channels=1) is None
    (tmp_path / "data").mkdir()
    (tmp_path / FEATURES).symlink_to(root / FEATURES)
    assert channel_maps(tmp_path, pictures=1, channels=1) is None
