import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tests.tiny import tiny_qwen_vl_tensors, write_tiny_qwen_vl
from tests.unit.checkpoints.range_hub import COMMIT, REPO, served_repository
from tests.unit.lowrank.caches import write_pictures
from tests.unit.lowrank.trainings import contents, train_tiny
from torch import Tensor

from subspacelab.checkpoints import Source, read_tensors, resolve_reference
from subspacelab.core.ownership import sole_writer
from subspacelab.data.pictures import read_pictures, square
from subspacelab.lowrank.extraction import CachePlan, cache_features
from subspacelab.lowrank.features import JOB, META, FeatureMeta, Features, shard_name
from subspacelab.lowrank.kept_pictures import read_picture
from subspacelab.models.vision_tower import VisionTower, load_vision_tower

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("two_pictures_a_shard")


def _cache(source: Source | str, pictures: Path, out: Path, **plan: int) -> FeatureMeta:
    return cache_features(source, CachePlan(pictures, image_size=56, **plan), out, device=CPU).meta


def test_the_cache_holds_the_features_of_every_picture(source: Source, tmp_path: Path) -> None:
    folder, curve = write_pictures(tmp_path / "in", 5), []
    plan = CachePlan(folder, image_size=56, batch_size=1)
    meta = cache_features(source, plan, tmp_path / "out", device=CPU, log=lambda *line: curve.append(line)).meta
    assert meta == Features(tmp_path / "out").meta == FeatureMeta("tiny", None, 56, 4, 48, "F32", 5, [])
    assert curve == [({"pictures": 5, "unreadable": 0, "tokens": 4, "dim": 48}, 0)]
    index = pd.read_parquet(tmp_path / "out" / "index.parquet")
    pictures = list(read_pictures(folder))
    expected = [(i, p.dataset_id, p.digest, shard_name(i // 2), i % 2) for i, p in enumerate(pictures)]
    assert list(index.columns) == ["row", "dataset_id", "sha256", "shard", "offset"]
    assert list(index.itertuples(index=False, name=None)) == expected
    assert index["sha256"][3] == hashlib.sha256((folder / "003.png").read_bytes()).hexdigest()
    tower = load_vision_tower(source, CPU)
    stored = Features(tmp_path / "out").read(range(5))
    for i, picture in enumerate(pictures):
        assert torch.equal(stored[i : i + 1], tower.features(square(picture, 56).pixels[None]))


def test_a_shard_is_safetensors_in_the_dtype_of_the_checkpoint(tmp_path: Path) -> None:
    half = resolve_reference(str(write_tiny_qwen_vl(tmp_path / "half", dtype=torch.bfloat16)))
    assert _cache(half, write_pictures(tmp_path / "in", 3), tmp_path / "out").dtype == "BF16"
    tensors, _ = read_tensors(tmp_path / "out" / shard_name(1))
    assert tensors["features"].dtype == torch.bfloat16
    assert torch.equal(tensors["features"].float(), Features(tmp_path / "out").read([2]))


def test_the_pictures_are_kept_for_looking_at(source: Source, tmp_path: Path) -> None:
    rows = [{"image": [f"./{i:03d}.png"], "response": {"bbox_2d": [4, 6, 24, 21]}} for i in range(3)]
    folder = write_pictures(tmp_path / "in", 3)
    (folder / "x.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    _cache(source, folder / "x.jsonl", tmp_path / "out")
    picture = read_picture(Features(tmp_path / "out"), 2)
    assert picture.dataset_id == "./002.png"
    assert picture.bbox == pytest.approx((4 * 1.4, 6 * 56 / 30, 20 * 1.4, 15 * 56 / 30))
    wanted = square(list(read_pictures(folder))[2], 56).pixels.numpy()
    # JPEG halves the colour's resolution, so noise keeps its brightness only: correlation 0.9; other pictures' is 0.
    assert np.corrcoef(picture.pixels.mean(2).ravel(), wanted.mean(2).ravel())[0, 1] > 0.9
    _cache(source, folder, tmp_path / "plain")
    assert read_picture(Features(tmp_path / "plain"), 0).bbox is None


def test_one_unreadable_picture_in_a_hundred_is_left_out_and_reported(source: Source, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "in", 101)
    (folder / "050.png").write_bytes(b"no picture")
    meta = _cache(source, folder, tmp_path / "out")
    assert (meta.count, meta.unreadable) == (100, ["050.png"])
    features = Features(tmp_path / "out")
    assert "050.png" not in set(features.index["dataset_id"])
    rest = load_vision_tower(source, CPU).features(square(list(read_pictures(folder))[51], 56).pixels[None])
    # Alone against in a batch: products of another height may add up in another order.
    torch.testing.assert_close(features.read([50]), rest, rtol=0, atol=1e-6)


def test_more_than_one_in_a_hundred_is_an_error(source: Source, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "in", 9)
    (folder / "004.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"1 of 9 pictures cannot be read \(first: 004.png\); more than 1 %"):
        _cache(source, folder, tmp_path / "out")
    assert not (tmp_path / "out" / META).exists()


def test_a_set_that_shrank_leaves_no_shards_of_the_larger(source: Source, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "in", 7)
    _cache(source, folder, tmp_path / "out")
    for i in range(3, 7):
        (folder / f"{i:03d}.png").unlink()
    assert _cache(source, folder, tmp_path / "out").count == 3
    _cache(source, folder, tmp_path / "fresh")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


@pytest.mark.parametrize("size", [0, 27, 30, 450, -28])
def test_a_size_that_is_no_multiple_of_28_is_refused(source: Source, tmp_path: Path, size: int) -> None:
    with pytest.raises(ValueError, match=f"image_size: {size} is not a multiple of 28"):
        cache_features(source, CachePlan(tmp_path, image_size=size), tmp_path / "out", device=CPU)


def test_a_picture_with_features_that_are_no_numbers_is_named(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_pictures(tmp_path / "in", 3)

    def spoilt(tower: VisionTower, images: Tensor) -> Tensor:
        return torch.full((len(images), 4, 48), torch.nan) if len(images) == 1 else torch.zeros(len(images), 4, 48)

    monkeypatch.setattr(VisionTower, "features", spoilt)
    with pytest.raises(ValueError, match="002.png: the vision tower gives NaN or Inf"):
        _cache(source, folder, tmp_path / "out")


def test_a_refused_checkpoint_leaves_the_cache_as_it_is(source: Source, tmp_path: Path) -> None:
    folder, other = write_pictures(tmp_path / "in", 3), tmp_path / "llama"
    _cache(source, folder, tmp_path / "out")
    shutil.copytree(source.folder, other)
    (other / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="'llama'"):
        _cache(resolve_reference(str(other)), folder, tmp_path / "out")
    assert len(Features(tmp_path / "out")) == 3


def test_a_list_without_pictures_is_refused(source: Source, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("")
    with pytest.raises(ValueError, match="x.jsonl"):
        _cache(source, tmp_path / "x.jsonl", tmp_path / "out")


def test_no_output_goes_into_the_pictures_or_the_checkpoint(source: Source, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "in", 3)
    (tmp_path / "link").symlink_to(folder)
    for out in (folder, folder / "features", tmp_path / "link", source.folder / "features"):
        before = contents(folder)
        with pytest.raises(ValueError, match="lies within, the input"):
            _cache(source, folder, out)
        assert contents(folder) == before


@pytest.mark.parametrize("name", ["notes.txt", "features-00000.safetensors", "meta.json", "job.json/x"])
def test_a_folder_of_others_is_refused_by_name(source: Source, tmp_path: Path, name: str) -> None:
    place = tmp_path / "out" / name
    place.parent.mkdir(parents=True)
    place.write_text("mine")
    with pytest.raises(ValueError, match=f"out: holds '{name.split('/')[0]}', no part of a feature cache") as e:
        _cache(source, write_pictures(tmp_path / "in", 3), tmp_path / "out")
    assert "\n" not in str(e.value)
    assert contents(tmp_path / "out") == {name: b"mine"}


def test_what_was_put_into_a_cache_is_refused_by_name(source: Source, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "in", 3)
    _cache(source, folder, tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    before = contents(tmp_path / "out")
    with pytest.raises(ValueError, match=r"holds 'notes.txt'"):
        _cache(source, folder, tmp_path / "out")
    assert contents(tmp_path / "out") == before


def test_a_link_is_written_through(source: Source, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "in", 3)
    (tmp_path / "out").symlink_to(tmp_path / "elsewhere")  # nothing there yet
    _cache(source, folder, tmp_path / "out")
    assert (tmp_path / "out").is_symlink()
    assert len(Features(tmp_path / "elsewhere")) == 3


def test_a_second_writer_is_refused(source: Source, tmp_path: Path) -> None:
    """By a lock within the folder: it may be a volume beside which nothing can lie."""
    out = tmp_path / "out"
    with sole_writer(out / JOB), pytest.raises(ValueError, match="another command is writing there"):
        _cache(source, write_pictures(tmp_path / "in", 3), out)
    assert not out.exists()
    out.mkdir()
    (out / ".job.json.lock").write_text("4242")  # a killed process leaves its id
    _cache(source, tmp_path / "in", out)
    assert ".job.json.lock" not in contents(out)


def test_no_training_on_a_damaged_cache(source: Source, tmp_path: Path) -> None:
    _cache(source, write_pictures(tmp_path / "in", 5), tmp_path / "out")
    shard = tmp_path / "out" / shard_name(1)
    shard.write_bytes(shard.read_bytes()[:-16] + bytes(16))
    with pytest.raises(ValueError, match=f"{shard_name(1)}: changed or damaged since it was cached; cache again"):
        train_tiny(Features(tmp_path / "out"), tmp_path / "results")
    assert not (tmp_path / "results").exists()
    (tmp_path / "out" / JOB).unlink()  # as of a version that wrote none
    with pytest.raises(ValueError, match="since it was cached; cache again, into a new folder"):
        Features(tmp_path / "out").require_whole()
    with pytest.raises(ValueError, match="without job.json, of an older version; cache into a new folder"):
        _cache(source, tmp_path / "in", tmp_path / "out")


def test_a_file_of_a_shards_name_that_no_record_proves_stays(source: Source, tmp_path: Path) -> None:
    out = tmp_path / "out"
    _cache(source, write_pictures(tmp_path / "in", 5), out)
    (out / "features-00007.json").write_text("mine")
    changed = (out / shard_name(2)).read_bytes() + b"mine"
    (out / shard_name(2)).write_bytes(changed)
    (tmp_path / "in" / "004.png").unlink()
    _cache(source, tmp_path / "in", out)
    assert (out / "features-00007.json").read_text() == "mine"
    assert (out / shard_name(2)).read_bytes() == changed
    assert not (out / "features-00002.json").exists()
    assert Features(out).meta.count == 4


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_decoding_processes_changes_no_byte(source: Source, tmp_path: Path, workers: int) -> None:
    folder = write_pictures(tmp_path / "in", 101)
    (folder / "050.png").write_bytes((folder / "050.png").read_bytes()[:200])  # looks like a picture
    plan = CachePlan(folder, image_size=56, decode_workers=0)
    for name, each in (("serial", plan), ("pool", replace(plan, decode_workers=workers))):
        cached = cache_features(source, each, tmp_path / name, device=CPU)
        assert cached.meta.unreadable == ["050.png"]
        assert cached.throughput
        assert (cached.throughput.pictures, cached.throughput.decode_workers) == (101, each.decode_workers)
        assert cache_features(source, each, tmp_path / name, device=CPU).throughput is None  # nothing was left to do
    assert contents(tmp_path / "pool") == contents(tmp_path / "serial")


def test_of_a_checkpoint_on_the_hub_only_the_tower_is_fetched(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, root = write_pictures(tmp_path / "in", 3), write_tiny_qwen_vl(tmp_path / "repo", sharded=True)
    monkeypatch.setattr("subspacelab.checkpoints.hub.HEAD_BYTES", 256)  # as little as of a large file
    with served_repository(root, tmp_path / "hub", monkeypatch) as hub:
        meta = _cache(REPO, folder, tmp_path / "out")
        sent = sum(count for name, count in hub.sent.items() if name.endswith(".safetensors"))
    tensors = tiny_qwen_vl_tensors()
    tower = sum(tensor.nbytes for name, tensor in tensors.items() if name.startswith("visual."))
    headers = sum(8 + int.from_bytes(file.read_bytes()[:8], "little") for file in root.glob("*.safetensors"))
    assert tower <= sent <= tower + headers  # each tensor once
    assert sent < 0.75 * sum(tensor.nbytes for tensor in tensors.values())
    assert (meta.model, meta.revision) == (REPO, COMMIT)
    _cache(source, folder, tmp_path / "local")
    local, remote = (contents(tmp_path / name) for name in ("local", "out"))
    assert remote[shard_name(0)] == local[shard_name(0)]
    assert json.loads(remote[JOB])["weights"] == json.loads(local[JOB])["weights"]
