"""What a run reads: each data set with the digest that leads to whoever made it."""

import json
import os
from pathlib import Path

import pandas as pd
import pytest

from subspacelab.checkpoints.references import Source
from subspacelab.tracking import datasets
from subspacelab.tracking.datasets import named_inputs, num_rows, recorded_outs, stage_inputs
from subspacelab.tracking.dvc_files import md5_file, md5_folder


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _write(path: str, text: str = "x") -> Path:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)
    return Path(path)


def test_rows_are_those_of_the_tables(here):
    _write("a/rows.jsonl", '{"x": 1}\n\n{"x": 2}\n')
    assert num_rows(Path("a/rows.jsonl")) == num_rows(Path("a")) == 2
    pd.DataFrame({"x": range(5)}).to_parquet("a/one.parquet")
    pd.DataFrame({"x": range(3)}).to_parquet("a/two.parquet")
    assert num_rows(Path("a")) == 8
    assert num_rows(_write("b/weights.safetensors")) is None
    assert num_rows(_write("c/torn.parquet", "no parquet")) is None
    assert num_rows(_write("c/rows.jsonl", "{}\n").parent) is None, "not those of the tables that can be read alone"


def test_a_stage_reads_the_outs_of_others_with_their_md5(here):
    for path in ("data/svd/base/u.bin", "data/svd/rl/u.bin", "data/corpus/facts.jsonl", "reports/lone.json"):
        _write(path, path)
    outs = {"data/svd/base": "1" * 32 + ".dir", "data/svd/rl": "2" * 32 + ".dir", "data/gone": "3" * 32}
    stages = {
        f"s@{n}": {"cmd": "x", "outs": [{"path": path, "md5": md5}]} for n, (path, md5) in enumerate(outs.items())
    }
    _write("dvc.lock", json.dumps({"schema": "2.0", "stages": stages | {"none": {"cmd": "y"}}}))
    assert recorded_outs(Path("dvc.lock")) == outs
    deps = [Path("data/svd"), Path("data/corpus"), Path("data/gone"), Path("reports/lone.json")]
    found = {d.name: d for d in stage_inputs(deps, lock=Path("dvc.lock"))}
    assert {name: d.digest for name, d in found.items()} == {
        "data/svd/base": outs["data/svd/base"],
        "data/svd/rl": outs["data/svd/rl"],
        "data/corpus": md5_folder(Path("data/corpus")),  # in no lock: hashed as DVC does
        "reports/lone.json": md5_file(Path("reports/lone.json")),
    }
    assert found["data/corpus"].rows == 1
    assert json.loads(found["data/svd/base"].source_json()) == {"uri": "data/svd/base", "md5": outs["data/svd/base"]}
    assert json.loads(found["data/corpus"].profile_json()) == {"num_rows": 1, "num_bytes": 23}
    by_hand = stage_inputs([Path("data/svd")], lock=None)  # whatever a lock of earlier says
    assert [(d.name, d.digest) for d in by_hand] == [("data/svd", md5_folder(Path("data/svd")))]


def test_what_a_person_named_is_found_once_and_nothing_is_fetched(here):
    rows = _write("mine/rows.jsonl", "{}\n")
    _write("data/corpus/train.txt")
    _write("data/corpus/arithmetic-train.jsonl", "{}\n{}\n")
    _write("data/checkpoints/llm/config.json")
    hub = Source("org/name", here / "cache", "c" * 40, "name")
    local = Source("mine", Path("mine"), None, "mine")
    given = [rows, str(rows), "demo:corpus", "pipeline:arithmetic", "pipeline:llm", hub, local]
    found = named_inputs(
        [*given, rows, None, "", "no/such", "wikitext2", "pipeline:none", "nowhere.txt", "a" * 300, "a\0b"]
    )
    assert [(d.name, d.kind, d.rows) for d in found] == [
        ("rows.jsonl", "local", 1),
        ("data/corpus", "local", 2),
        ("data/corpus/arithmetic-train.jsonl", "local", 2),
        ("data/checkpoints/llm", "local", None),
        ("org/name", "http", None),
        ("mine", "local", 1),
    ]
    assert found[4].digest == "c" * 36
    assert json.loads(found[4].source_json()) == {"url": f"https://huggingface.co/org/name/tree/{'c' * 40}"}


def test_odd_files_are_left_out_or_named_as_text(here):
    os.mkfifo("pipe.jsonl")  # to open it would wait for ever, and to read it would take the data away
    Path("dangling.jsonl").symlink_to("nowhere")
    _write("folder/a.txt")
    Path("folder/b.txt").symlink_to("nowhere")
    odd = Path(os.fsdecode(b"\xff.jsonl"))
    odd.write_text("{}\n")
    found = named_inputs(["pipe.jsonl", "dangling.jsonl", "folder", odd])
    assert [(d.name, d.rows) for d in found] == [("folder", None), ("\\udcff.jsonl", 1)]


def test_of_a_large_folder_names_and_sizes_are_hashed(here, monkeypatch):
    monkeypatch.setattr(datasets, "LARGE", 10)
    path = _write("big/model.bin", "0123456789")
    (small,) = named_inputs(["big"])
    assert small.digest == md5_folder(Path("big"))
    path.write_text("0123456789a")
    (large,) = named_inputs(["big"])
    assert large.digest.startswith("sizes-")
    assert len(large.digest) == datasets.DIGEST_LENGTH
    path.write_text("0123456789b")
    assert named_inputs(["big"]) == [large]
    path.write_text("0123456789bc")
    assert named_inputs(["big"]) != [large]
