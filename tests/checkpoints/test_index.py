import json

import pytest
from tests.checkpoints.refusal import refusal
from tests.tiny import write_tiny_qwen_vl

from subspacelab.checkpoints import open_checkpoint
from subspacelab.checkpoints.index import find_weights

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
    message = refusal(open_checkpoint, tmp_path)
    assert "model-00002-of-00002.safetensors: missing shard (1 of 2 missing)" in message


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"])
def test_git_lfs_pointers_are_recognised(tmp_path, name):
    (tmp_path / name).write_text(POINTER)
    message = refusal(open_checkpoint, tmp_path)
    assert name in message
    assert "git lfs pull" in message


def test_a_pointer_among_good_shards_is_found_on_opening(tmp_path):
    write_tiny_qwen_vl(tmp_path, sharded=True)
    (tmp_path / "model-00002-of-00002.safetensors").write_text(POINTER)
    assert "model-00002-of-00002.safetensors: a git-LFS pointer" in refusal(open_checkpoint, tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_empty_files(tmp_path, name):
    (tmp_path / name).touch()
    assert "empty file" in refusal(open_checkpoint, tmp_path)


def test_a_folder_without_weights_and_no_folder_at_all(tmp_path):
    (tmp_path / "README.md").write_text("weights elsewhere")
    assert "no weights here; expected one of model.safetensors" in refusal(open_checkpoint, tmp_path)
    assert "no such checkpoint" in refusal(open_checkpoint, tmp_path / "absent")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{}", "no 'weight_map'"),
        ("[]", "no 'weight_map'"),
        ("{", "not valid JSON"),
        (json.dumps({"weight_map": {"w": "../../other/model.safetensors"}}), "not a file name"),
        (json.dumps({"weight_map": {"w": 3}}), "not a file name"),
    ],
)
def test_an_index_that_is_none(tmp_path, content, said):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    message = refusal(open_checkpoint, tmp_path)
    assert "model.safetensors.index.json" in message
    assert said in message


def test_an_unknown_format_is_named(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert "unknown weight format '.gguf'" in refusal(open_checkpoint, tmp_path / "model.gguf")
