import json
import os

import pytest
import torch
from safetensors.torch import save_file
from tests.tiny import write_tiny_qwen_vl
from tests.unit.checkpoints.refusal import refusal

from subspacelab.checkpoints import TensorInfo, open_source
from subspacelab.checkpoints.index import find_weights, located
from subspacelab.checkpoints.live import RangedFiles
from subspacelab.checkpoints.safetensors_file import DiskFile

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 3965\n"


def test_formats_are_preferred_in_order_and_nothing_is_globbed(tmp_path):
    write_tiny_qwen_vl(tmp_path, format="bin", sharded=True)
    (tmp_path / "consolidated.safetensors").write_bytes(b"somebody's duplicate")
    assert find_weights(tmp_path).shards[0] == "pytorch_model-00001-of-00002.bin"
    write_tiny_qwen_vl(tmp_path, format="bin")
    assert find_weights(tmp_path).shards == ("pytorch_model.bin",)
    write_tiny_qwen_vl(tmp_path, sharded=True)
    assert len(find_weights(tmp_path).shards) == 2
    write_tiny_qwen_vl(tmp_path)
    assert find_weights(tmp_path).shards == ("model.safetensors",)


def test_a_missing_shard_is_named_and_counted(tmp_path):
    write_tiny_qwen_vl(tmp_path, sharded=True)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    message = refusal(open_source, tmp_path)
    assert "model-00002-of-00002.safetensors: missing shard (1 of 2 missing)" in message


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"])
def test_git_lfs_pointers_are_recognised(tmp_path, name):
    (tmp_path / name).write_text(POINTER)
    message = refusal(open_source, tmp_path)
    assert name in message
    assert "git lfs pull" in message


def test_a_pointer_among_good_shards_is_found_on_opening(tmp_path):
    write_tiny_qwen_vl(tmp_path, sharded=True)
    (tmp_path / "model-00002-of-00002.safetensors").write_text(POINTER)
    assert "model-00002-of-00002.safetensors: a git-LFS pointer" in refusal(open_source, tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_empty_files(tmp_path, name):
    (tmp_path / name).touch()
    assert "empty file" in refusal(open_source, tmp_path)


def test_a_folder_without_weights_and_no_folder_at_all(tmp_path):
    (tmp_path / "README.md").write_text("weights elsewhere")
    assert "no weights here; expected one of model.safetensors" in refusal(open_source, tmp_path)
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "adapter_config.json").touch()
    assert refusal(open_source, tmp_path) == f"{tmp_path}: no weights here; did you mean {tmp_path / 'inner'}?"
    assert "an adapter, not a checkpoint" in refusal(open_source, tmp_path / "inner")
    assert "no such checkpoint" in refusal(open_source, tmp_path / "absent")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{}", "not an index of shards (weight_map: Field required)"),
        ("[]", "not an index of shards"),
        ('{"weight_map": {}}', "weight_map: Dictionary should have at least 1 item"),
        ('{"weight_map": null}', "weight_map: Input should be an object"),
        ("{", "Invalid JSON"),
        (json.dumps({"weight_map": {"w": "../../other/model.safetensors"}}), "not a file name"),
        (json.dumps({"weight_map": {"w": ".."}}), "not a file name"),
        (json.dumps({"weight_map": {"w": ""}}), "not a file name"),
        (json.dumps({"weight_map": {"w": 3}}), "weight_map.w: Input should be a valid string"),
        ("[" * 100_000, "Invalid JSON: recursion limit exceeded"),
    ],
)
def test_an_index_that_is_none(tmp_path, content, said):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    message = refusal(open_source, tmp_path)
    assert "model.safetensors.index.json" in message
    assert said in message


def listed(infos, weight_map):
    return {name: info.shard for name, info in located(infos, weight_map, str).items()}


def info(name, shard):
    return TensorInfo(name, (1,), "F32", 4, shard)


def test_of_a_tensor_in_two_shards_the_index_decides():
    infos = [info("w", "a"), info("w", "b"), info("only", "b")]
    assert listed(infos, {"w": "a"}) == {"w": "a", "only": "b"}
    assert listed(infos, {"w": "b", "only": "b"}) == {"w": "b", "only": "b"}
    assert refusal(listed, infos, {"only": "b"}).startswith("b: w is in it and in a, and not in the index")
    assert refusal(listed, infos, {"w": "c"}).startswith("c: w is not in it")


def test_both_readers_ask_the_index(tmp_path):
    for value, shard in enumerate(("a.safetensors", "b.safetensors")):
        save_file({"w": torch.full((2,), float(value)), shard[0]: torch.ones(1)}, tmp_path / shard)
    for shard, value in (("a.safetensors", 0), ("b.safetensors", 1)):
        weight_map = {"w": shard, "a": "a.safetensors", "b": "b.safetensors"}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        assert open_source(tmp_path).read("w").tolist() == [value] * 2
        ranged = RangedFiles({s: DiskFile(tmp_path / s) for s in set(weight_map.values())}, lambda _: None, weight_map)
        assert ranged.infos["w"].shard == shard


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin.index.json", "config.json"])
def test_what_is_no_regular_file_is_refused_before_it_is_opened(tmp_path, make, name):
    if name == "config.json":
        write_tiny_qwen_vl(tmp_path)
        (tmp_path / name).unlink()
    make(tmp_path / name)
    assert f"{name}: not a regular file" in refusal(open_source, tmp_path)


def test_json_beyond_all_measure_is_refused_before_it_is_read(tmp_path):
    with (tmp_path / "model.safetensors.index.json").open("wb") as file:
        file.write(b" ")
        file.truncate(1 << 40)
    assert "more than an index of shards has" in refusal(open_source, tmp_path)


@pytest.mark.parametrize("format", ["safetensors", "bin"])
def test_a_checkpoint_of_no_tensors_is_none(tmp_path, format):
    write_tiny_qwen_vl(tmp_path, format=format, tensors={})
    assert f"{tmp_path}: holds no tensors" in refusal(open_source, tmp_path)


def test_an_unknown_format_is_named(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert "unknown weight format '.gguf'" in refusal(open_source, tmp_path / "model.gguf")
