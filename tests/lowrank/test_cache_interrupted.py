"""What is computed when a cache is made again: after a break, a loss, or a change."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.lowrank.caches import encoded_picture, write_pictures
from tests.lowrank.trainings import contents
from tests.tiny import write_tiny_qwen_vl
from torch import Tensor

from subspacelab.checkpoints import Source, resolve_reference
from subspacelab.lowrank import cache
from subspacelab.lowrank.cache import CachePlan, cache_features
from subspacelab.lowrank.features import Features, shard_name
from subspacelab.models.vision_tower import VisionTower

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("two_pictures_a_shard")


def _cache(source: Source, pictures: Path, out: Path) -> None:
    cache_features(source, CachePlan(pictures, image_size=56), out, device=CPU)


class Calls:
    """Counts passes of the tower, one per shard here, and breaks the one of number `broken`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.broken: int | None = None
        original = VisionTower.features

        def features(tower: VisionTower, images: Tensor) -> Tensor:
            self.count += 1
            if self.count == self.broken:
                raise KeyboardInterrupt
            return original(tower, images)

        monkeypatch.setattr(VisionTower, "features", features)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(monkeypatch)


def test_an_interrupted_cache_is_continued_to_the_same_bytes(source: Source, tmp_path: Path, calls: Calls) -> None:
    folder = write_pictures(tmp_path / "in", 9)
    _cache(source, folder, tmp_path / "unbroken")
    calls.count, calls.broken = 0, 3
    with pytest.raises(KeyboardInterrupt):
        _cache(source, folder, tmp_path / "out")
    with pytest.raises(ValueError, match="no feature cache there"):
        Features(tmp_path / "out")
    calls.count, calls.broken = 0, None
    _cache(source, folder, tmp_path / "out")
    assert calls.count == 3  # of five shards two were there
    assert contents(tmp_path / "out") == contents(tmp_path / "unbroken")


def test_a_complete_cache_is_not_computed_again(source: Source, tmp_path: Path, calls: Calls) -> None:
    folder = write_pictures(tmp_path / "in", 5)
    _cache(source, folder, tmp_path / "out")
    first = contents(tmp_path / "out")
    _cache(source, folder, tmp_path / "out")
    assert calls.count == 3
    assert contents(tmp_path / "out") == first


@pytest.mark.parametrize("name", [shard_name(1), "pictures-00001.parquet"])
def test_caching_again_mends_a_lost_or_truncated_shard(source: Source, tmp_path: Path, calls: Calls, name: str) -> None:
    folder = write_pictures(tmp_path / "in", 5)
    _cache(source, folder, tmp_path / "out")
    first = contents(tmp_path / "out")
    for spoil in (Path.unlink, lambda file: file.write_bytes(file.read_bytes()[:-100])):
        spoil(tmp_path / "out" / name)
        calls.count = 0
        _cache(source, folder, tmp_path / "out")
        assert contents(tmp_path / "out") == first
        assert calls.count == 1


def test_other_pictures_another_size_or_another_checkpoint_are_computed(
    source: Source, tmp_path: Path, calls: Calls
) -> None:
    folder, out = write_pictures(tmp_path / "in", 4), tmp_path / "out"
    _cache(source, folder, out)
    (folder / "003.png").write_bytes(encoded_picture(np.random.default_rng(9)))
    calls.count = 0
    _cache(source, folder, out)
    assert calls.count == 1
    cache_features(source, CachePlan(folder, image_size=84), out, device=CPU)
    assert calls.count == 3
    other = resolve_reference(str(write_tiny_qwen_vl(tmp_path / "tiny", seed=1)))
    cache_features(other, CachePlan(folder, image_size=84), out, device=CPU)
    assert calls.count == 5
    cache_features(other, CachePlan(folder, image_size=84), tmp_path / "fresh", device=CPU)
    assert contents(out) == contents(tmp_path / "fresh")


def test_a_corrected_box_of_the_same_picture_is_taken_over(source: Source, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "in", 2)
    for corners in ([0, 0, 40, 30], [20, 15, 40, 30]):
        rows = [{"image": f"{i:03d}.png", "response": {"bbox_2d": corners}} for i in range(2)]
        (folder / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
        _cache(source, folder / "x.jsonl", tmp_path / "out")
    assert Features(tmp_path / "out").picture(1).bbox == pytest.approx((28, 28, 28, 28))


def test_a_shard_half_replaced_is_not_taken_for_the_one_before(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = write_pictures(tmp_path / "a", 4), write_pictures(tmp_path / "b", 4, seed=1)
    _cache(source, first, tmp_path / "out")
    expected = contents(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(cache, "_write_pictures", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            _cache(source, second, tmp_path / "out")
    _cache(source, first, tmp_path / "out")
    assert contents(tmp_path / "out") == expected
