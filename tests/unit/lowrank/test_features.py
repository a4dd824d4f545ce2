import hashlib
import json
import os
import random
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tests.unit.lowrank.caches import random_features, write_cache, write_random_cache

from subspacelab.checkpoints import write_tensors
from subspacelab.core.files import write_json
from subspacelab.lowrank.features import INDEX, META, FeatureMeta, Features, shard_name, split_rows
from subspacelab.lowrank.kept_pictures import read_picture


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_reads_what_the_shards_hold_in_any_order(tmp_path: Path, dtype: torch.dtype) -> None:
    stored = random_features(11, 9, 5).to(dtype)  # rows of 90 or 180 bytes, off every page
    write_cache(tmp_path, list(stored.split(4)))
    features = Features(tmp_path)
    assert len(features) == 11
    for rows in ([0], [10, 0, 5, 5, 4, 3], list(range(11)), []):
        got = features.read(rows)
        assert got.dtype == torch.float32
        assert torch.equal(got, stored[rows].float())
    assert features.meta.side == 3


def test_what_is_read_is_a_copy(tmp_path: Path) -> None:
    features = write_random_cache(tmp_path)
    features.read([2]).zero_()
    assert torch.equal(features.read([2]), random_features(24, 16, 12)[[2]])


def test_pictures_come_back_with_their_boxes(tmp_path: Path) -> None:
    features = write_random_cache(tmp_path, count=10, per_shard=4, pictures=True)
    stored = pd.read_parquet(tmp_path / "pictures-00002.parquet")
    picture = read_picture(features, 9)
    assert picture.dataset_id == "picture-0009"
    assert picture.bbox == tuple(stored["bbox"][1])
    assert picture.pixels.shape == (112, 112, 3)
    assert picture.pixels.dtype == np.uint8


def _edit_meta(**changes: object) -> Callable[[Path], None]:
    return lambda folder: write_json(folder / META, json.loads((folder / META).read_text()) | changes)


def _edit_index(column: str, row: int, value: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        index = pd.read_parquet(folder / INDEX)
        index.loc[row, column] = value
        index.to_parquet(folder / INDEX)

    return edit


def _truncate(size: int) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / shard_name(1), size)


def _drop_rows(folder: Path) -> None:
    pd.read_parquet(folder / INDEX)[:20].to_parquet(folder / INDEX)


def _drop_column(folder: Path) -> None:
    pd.read_parquet(folder / INDEX).drop(columns="offset").to_parquet(folder / INDEX)


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no_meta": (lambda folder: (folder / META).unlink(), "no feature cache there (meta.json is missing)"),
    "broken_meta": (lambda folder: (folder / META).write_text("{"), f"{META}: not valid JSON"),
    "list_for_meta": (lambda folder: (folder / META).write_text("[]"), f"{META}: not the meta.json of a feature"),
    "unknown_field": (_edit_meta(colour="red"), "meta.json.colour: no such key, got 'red'"),
    "other_count": (_edit_meta(count=25), f"{INDEX} has 24 rows, {META} says 25"),
    "other_width": (_edit_meta(dim=13), "F32 [8, 16, 12] does not fit meta.json"),
    "other_tokens": (_edit_meta(tokens=25), "F32 [8, 16, 12] does not fit meta.json"),
    "other_dtype": (_edit_meta(dtype="BF16"), "F32 [8, 16, 12] does not fit meta.json"),
    "missing_shard": (lambda folder: (folder / shard_name(1)).unlink(), f"{shard_name(1)}: shard is missing"),
    "truncated_data": (_truncate(6000), f"{shard_name(1)}: truncated"),
    "truncated_header": (_truncate(20), f"{shard_name(1)}: truncated or no feature shard"),
    "empty_shard": (_truncate(0), f"{shard_name(1)}: truncated or no feature shard"),
    "junk_shard": (lambda folder: (folder / shard_name(1)).write_bytes(b"junk" * 99), "no feature shard"),
    "other_tensor": (
        lambda folder: write_tensors(folder / shard_name(1), {"other": torch.zeros(8, 16, 12)}),
        f"{shard_name(1)}: truncated or no feature shard ('features')",
    ),
    "shard_elsewhere": (_edit_index("shard", 3, "../features-00000.safetensors"), "is not a file name"),
    "absolute_shard": (_edit_index("shard", 3, "/etc/passwd"), "'/etc/passwd' is not a file name"),
    "fewer_rows": (_drop_rows, f"{INDEX} has 20 rows, {META} says 24"),
    "offset_beyond_the_shard": (_edit_index("offset", 3, 8), INDEX),
    "negative_offset": (_edit_index("offset", 3, -1), INDEX),
    "no_index": (lambda folder: (folder / INDEX).unlink(), INDEX),
    "broken_index": (lambda folder: (folder / INDEX).write_bytes(b"PAR1 nonsense"), INDEX),
    "index_without_offsets": (_drop_column, INDEX),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_cache_is_named_in_one_line_when_it_is_opened(tmp_path: Path, fault: str) -> None:
    write_random_cache(tmp_path)
    spoil, words = FAULTS[fault]
    spoil(tmp_path)
    with pytest.raises(ValueError) as caught:
        Features(tmp_path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


READ_ALL = """
import sys
from pathlib import Path
from subspacelab.lowrank.features import Features

def resident():
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return sum(int(lines[kind].split()[0]) for kind in ("RssAnon", "RssFile", "RssShmem"))

features = Features(Path(sys.argv[1]))
features.read(range(8))
before = highest = resident()
for first in range(0, len(features), 8):
    features.read(range(first, first + 8))
    highest = max(highest, resident())
print(highest - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux's account of a process's memory")
def test_what_has_been_read_does_not_stay_in_memory(tmp_path: Path) -> None:
    count, tokens, dim = 512, 256, 1024
    size = count * tokens * dim * 4
    header = {"features": {"dtype": "F32", "shape": [count, tokens, dim], "data_offsets": [0, size]}}
    encoded = json.dumps(header).encode()
    shard = tmp_path / shard_name(0)
    shard.write_bytes(struct.pack("<Q", len(encoded)) + encoded)
    os.truncate(shard, 8 + len(encoded) + size)
    index = pd.DataFrame({"row": range(count), "dataset_id": "x", "sha256": "x", "shard": shard.name})
    index.assign(offset=range(count)).to_parquet(tmp_path / INDEX)
    meta = FeatureMeta("none", None, 448, tokens, dim, "F32", count, [])
    write_json(tmp_path / META, meta.as_json())
    done = subprocess.run([sys.executable, "-c", READ_ALL, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # KiB; 1 MiB a row: batches of 8 and read-ahead of the kernel. All rows would be 512 MiB.
    assert int(done.stdout) < 64 * 1024


def _digests(count: int) -> list[str]:
    return [hashlib.sha256(str(i).encode()).hexdigest() for i in range(count)]


def _by_picture(digests: list[str], seed: int) -> dict[str, str]:
    return {digests[row]: name for name, rows in split_rows(digests, seed).items() for row in rows}


def test_800_pictures_give_80_for_test_and_80_for_validation() -> None:
    rows = split_rows(_digests(800), 42)
    assert {name: len(found) for name, found in rows.items()} == {"train": 640, "validation": 80, "test": 80}
    assert sorted(row for found in rows.values() for row in found) == list(range(800))
    assert all(found == sorted(found) for found in rows.values())


@pytest.mark.parametrize(("count", "tenth"), [(3, 1), (10, 1), (14, 1), (24, 2), (99, 10), (4370, 437)])
def test_other_numbers_are_shared_as_nearly_as_they_can(count: int, tenth: int) -> None:
    rows = split_rows(_digests(count), 0)
    assert [len(rows[name]) for name in ("train", "validation", "test")] == [count - 2 * tenth, tenth, tenth]


def test_copies_of_a_picture_go_together() -> None:
    pictures = _digests(100)
    drawn = random.Random(0)
    rows = pictures + drawn.choices(pictures, k=200)
    drawn.shuffle(rows)
    split = split_rows(rows, 1)
    names = [{rows[row] for row in split[name]} for name in ("train", "validation", "test")]
    assert [len(found) for found in names] == [80, 10, 10]
    assert set.union(*names) == set(pictures)
    assert sum(map(len, split.values())) == 300


def test_order_and_copies_of_the_rows_change_nothing() -> None:
    pictures = _digests(60)
    expected = _by_picture(pictures, 7)
    assert _by_picture(pictures[::-1], 7) == expected
    assert _by_picture(pictures * 2, 7) == expected


def test_a_seed_always_draws_the_same_and_another_seed_differently() -> None:
    pictures = _digests(200)
    assert split_rows(pictures, 3) == split_rows(list(pictures), 3)
    tests = [frozenset(split_rows(pictures, seed)["test"]) for seed in range(5)]
    assert len(set(tests)) == 5


def test_fewer_than_three_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match="2 distinct pictures cannot be split in three"):
        split_rows(_digests(2) * 10, 0)
