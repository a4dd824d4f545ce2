"""What is computed when a cache is made again: after a break, a loss, or a change."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from tests.tiny import write_tiny_qwen_vl
from tests.unit.lowrank.caches import encoded_picture, write_pictures
from tests.unit.lowrank.trainings import contents
from torch import Tensor

from subspacelab.checkpoints import Source, resolve_reference
from subspacelab.lowrank import cache
from subspacelab.lowrank.extraction import CachePlan, cache_features
from subspacelab.lowrank.features import META, Features, shard_name
from subspacelab.lowrank.kept_pictures import read_picture
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


@pytest.mark.slow
def test_a_ctrl_c_leaves_one_line_and_no_process(source: Source, tmp_path: Path) -> None:
    """And what was done: the same command goes on, to the bytes of a run without a pool."""
    folder = write_pictures(tmp_path / "in", 200)
    words = ["lowrank", "cache", "--no-track", "--device", "cpu", "--image-size", "56", "--images", str(folder)]
    words += ["--model-id", str(source.folder), "--output-dir", "out", "--decode-workers", "2"]
    slow = """
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what it puts in the background without it
from subspacelab.cli import run
from subspacelab.models.vision_tower import VisionTower
real = VisionTower.features
VisionTower.features = lambda tower, images: (time.sleep(0.3), real(tower, images))[1]
run()
"""
    command = [sys.executable, "-c", slow, *words]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as program:
        while not list((tmp_path / "out" / "pending").glob("*.json")):
            assert program.poll() is None
            time.sleep(0.01)
        decoders = psutil.Process(program.pid).children()
        program.send_signal(signal.SIGINT)
        _, said = program.communicate(timeout=60)
    assert program.returncode == 130
    assert b"Traceback" not in said
    assert len(decoders) == 2
    assert not any(decoder.is_running() for decoder in decoders)
    assert not (tmp_path / "out" / META).exists()
    for name in ("out", "fresh"):
        cache_features(source, CachePlan(folder, image_size=56), tmp_path / name, device=CPU)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_a_complete_cache_is_not_computed_again(source: Source, tmp_path: Path, calls: Calls) -> None:
    folder = write_pictures(tmp_path / "in", 5)
    _cache(source, folder, tmp_path / "out")
    first = contents(tmp_path / "out")
    written = [path.stat().st_mtime_ns for path in sorted((tmp_path / "out").iterdir())]
    _cache(source, folder, tmp_path / "out")
    assert calls.count == 3
    assert contents(tmp_path / "out") == first
    assert [path.stat().st_mtime_ns for path in sorted((tmp_path / "out").iterdir())] == written


def _zero(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 16] = bytes(16)
    file.write_bytes(content)


@pytest.mark.parametrize("name", [shard_name(1), "pictures-00001.parquet", "features-00001.json"])
def test_caching_again_mends_a_lost_or_damaged_shard(source: Source, tmp_path: Path, calls: Calls, name: str) -> None:
    folder = write_pictures(tmp_path / "in", 5)
    _cache(source, folder, tmp_path / "out")
    first = contents(tmp_path / "out")
    for spoil in (Path.unlink, lambda file: file.write_bytes(file.read_bytes()[:-100]), _zero):
        spoil(tmp_path / "out" / name)
        calls.count = 0
        _cache(source, folder, tmp_path / "out")
        assert contents(tmp_path / "out") == first
        assert calls.count == 1


@pytest.mark.parametrize("name", ["index.parquet", "meta.json"])
def test_caching_again_mends_what_is_said_to_need_it(source: Source, tmp_path: Path, calls: Calls, name: str) -> None:
    folder = write_pictures(tmp_path / "in", 5)
    _cache(source, folder, tmp_path / "out")
    first = contents(tmp_path / "out")
    (tmp_path / "out" / name).write_bytes(b"junk")
    calls.count = 0
    _cache(source, folder, tmp_path / "out")
    assert contents(tmp_path / "out") == first
    assert calls.count == 0


def test_a_changed_picture_is_computed_and_more_pictures_are_added(
    source: Source, tmp_path: Path, calls: Calls
) -> None:
    folder, out = write_pictures(tmp_path / "in", 6), tmp_path / "out"
    cache_features(source, CachePlan(folder, image_size=56, limit=4), out, device=CPU)
    (folder / "003.png").write_bytes(encoded_picture(np.random.default_rng(9)))
    for limit, computed in ((4, 1), (6, 1), (None, 0)):
        calls.count = 0
        cache_features(source, CachePlan(folder, image_size=56, limit=limit), out, device=CPU)
        assert calls.count == computed
    _cache(source, folder, tmp_path / "fresh")
    assert contents(out) == contents(tmp_path / "fresh")


def test_another_job_in_the_folder_is_refused_with_both_names(source: Source, tmp_path: Path) -> None:
    folder, out = write_pictures(tmp_path / "in", 4), tmp_path / "out"
    _cache(source, folder, out)
    before = contents(out)
    write_pictures(tmp_path / "others", 4, seed=1)
    (tmp_path / "b").mkdir()
    same = resolve_reference(str(write_tiny_qwen_vl(tmp_path / "b" / source.name, seed=1)))
    other = resolve_reference(str(write_tiny_qwen_vl(tmp_path / "other", seed=1)))
    plan = CachePlan(folder, image_size=56)
    for model, asked, said in (
        (source, replace(plan, image_size=84), "image_size=56, .* image_size=84"),
        (source, replace(plan, limit=2), "limit=None, .* limit=2"),
        (source, replace(plan, pictures=tmp_path / "others"), "pictures='.*/in', .* pictures='.*/others'"),
        (other, plan, "model='tiny', .* model='other'"),
        (same, plan, "weights='.*', .* weights='.*'"),
    ):
        with pytest.raises(ValueError, match=f"holds a result of {said}; give another place") as e:
            cache_features(model, asked, out, device=CPU)
        assert "\n" not in str(e.value)
        assert contents(out) == before


def test_the_same_checkpoint_by_another_name_continues(source: Source, tmp_path: Path, calls: Calls) -> None:
    """The cache keeps the name that it has: trainings know their features by it."""
    folder, out = write_pictures(tmp_path / "in", 4), tmp_path / "out"
    _cache(source, folder, out)
    moved, before = resolve_reference(str(write_tiny_qwen_vl(tmp_path / "moved"))), contents(out)
    calls.count = 0
    cache_features(moved, CachePlan(folder, image_size=56), out, device=CPU)
    assert (calls.count, Features(out).meta.model) == (0, source.name)
    assert contents(out) == before
    job = json.loads(before["job.json"])
    (out / "job.json").write_text(json.dumps(job | {"model": "another"}))  # damaged: meta.json knows it better
    _cache(source, folder, out)
    assert contents(out) == before


@pytest.mark.parametrize("name", ["features-00000.safetensors", "pending", "pending/mine"])
def test_links_and_what_others_put_among_the_shards_are_refused(source: Source, tmp_path: Path, name: str) -> None:
    folder, out = write_pictures(tmp_path / "in", 2), tmp_path / "out"
    _cache(source, folder, out)
    (tmp_path / "victim").mkdir()
    (out / name).unlink(missing_ok=True)
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).symlink_to(tmp_path / "victim")
    with pytest.raises(ValueError, match=f"holds '{Path(name).name}', no part of a feature cache"):
        _cache(source, folder, out)
    assert (out / name).is_symlink()
    assert not any((tmp_path / "victim").iterdir())


def test_a_corrected_box_of_the_same_picture_is_taken_over(source: Source, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "in", 2)
    for corners in ([0, 0, 40, 30], [20, 15, 40, 30]):
        rows = [{"image": f"{i:03d}.png", "response": {"bbox_2d": corners}} for i in range(2)]
        (folder / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
        _cache(source, folder / "x.jsonl", tmp_path / "out")
    assert read_picture(Features(tmp_path / "out"), 1).bbox == pytest.approx((28, 28, 28, 28))


def test_a_refusal_in_mid_work_leaves_the_earlier_cache(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = write_pictures(tmp_path / "in", 6), tmp_path / "out"
    _cache(source, folder, out)
    before = contents(out)
    good = {i: (folder / f"{i:03d}.png").read_bytes() for i in (1, 5)}
    (folder / "001.png").write_bytes(encoded_picture(np.random.default_rng(9)))
    (folder / "005.png").write_bytes(good[5][:200])  # looks like a picture
    with pytest.raises(ValueError, match="1 of 6 pictures cannot be read"):
        _cache(source, folder, out)
    assert {name: out.joinpath(name).read_bytes() for name in before} == before
    assert len(Features(out)) == 6
    for i, content in good.items():
        (folder / f"{i:03d}.png").write_bytes(content)
    _cache(source, folder, out)
    assert contents(out) == before


@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_cache_killed_while_shards_are_replaced_continues_to_the_same_bytes(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    folder, out = write_pictures(tmp_path / "in", 4), tmp_path / "out"
    _cache(source, folder, out)
    write_pictures(folder, 4, seed=1)
    _cache(source, folder, tmp_path / "fresh")
    moves, move = [], os.replace

    def kill(made: Path, place: Path) -> None:
        if Path(made).parent.name == "pending":
            moves.append(made)
            if len(moves) == call:
                raise KeyboardInterrupt
        move(made, place)

    with monkeypatch.context() as patch:
        patch.setattr(cache.os, "replace", kill)
        with pytest.raises(KeyboardInterrupt):
            _cache(source, folder, out)
    with pytest.raises(ValueError, match="no feature cache there"):
        Features(out)
    _cache(source, folder, out)
    assert contents(out) == contents(tmp_path / "fresh")
