import json

import pytest
import torch
from safetensors import safe_open
from tests.faults.small_disk import file_size_limit
from tests.tiny import tiny_qwen_vl_config, tiny_qwen_vl_tensors, write_tiny_qwen_vl
from tests.unit.checkpoints.refusal import refusal

from subspacelab.checkpoints import checkpoint_writer, open_source, write_checkpoint, write_tensors
from subspacelab.core.files import sha256_file


@pytest.mark.parametrize("max_shard_bytes", [1, 100_000, 10**9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_written_is_read(tmp_path, max_shard_bytes, dtype):
    tensors = tiny_qwen_vl_tensors(dtype=dtype)
    folder = tmp_path / "model"
    write_checkpoint(folder, tensors, tiny_qwen_vl_config(), max_shard_bytes=max_shard_bytes)
    with open_source(folder) as checkpoint:
        assert checkpoint.config == tiny_qwen_vl_config()
        assert checkpoint.names == sorted(tensors)
        for name, tensor in tensors.items():
            assert torch.equal(checkpoint.read(name), tensor)
            assert checkpoint.read(name).dtype == dtype


def test_shards_hold_their_limit_and_the_index_is_the_hubs(tmp_path):
    tensors = tiny_qwen_vl_tensors()
    write_checkpoint(tmp_path / "model", tensors, {}, max_shard_bytes=100_000)
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert index["metadata"] == {"total_size": sum(t.nbytes for t in tensors.values())}
    assert shards == [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    assert len(shards) > 2
    for shard in shards:
        with safe_open(tmp_path / "model" / shard, "pt") as file:
            names = file.keys()
            assert file.metadata() == {"format": "pt"}
        assert sum(tensors[name].nbytes for name in names) <= 100_000 or len(names) == 1
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == [
        *("config.json", *shards, "model.safetensors.index.json")
    ]


def test_equal_tensors_are_equal_bytes(tmp_path):
    for name in ("a", "b"):
        write_checkpoint(tmp_path / name, tiny_qwen_vl_tensors(), {"x": 1}, max_shard_bytes=100_000)
    for file in (tmp_path / "a").iterdir():
        assert sha256_file(file) == sha256_file(tmp_path / "b" / file.name)


def test_a_checkpoint_streams_from_reader_to_writer(tmp_path):
    write_tiny_qwen_vl(tmp_path / "from", sharded=True, dtype=torch.bfloat16)
    with open_source(tmp_path / "from") as source, checkpoint_writer(tmp_path / "to", source.config) as writer:
        for name in source.names_in_file_order():
            writer.add(name, source.read(name))
        (writer.folder / "tokenizer.json").write_text("{}")
    with open_source(tmp_path / "from") as a, open_source(tmp_path / "to") as b:
        assert [a.digest(name) for name in a.names] == [b.digest(name) for name in b.names]
    assert (tmp_path / "to" / "tokenizer.json").exists()


def test_a_checkpoint_never_takes_the_place_of_another(tmp_path):
    write_checkpoint(tmp_path / "model", {"w": torch.ones(2)}, {})
    assert "model: holds 'config.json'" in refusal(write_checkpoint, tmp_path / "model", {"w": torch.zeros(2)}, {})
    with open_source(tmp_path / "model") as checkpoint:
        assert torch.equal(checkpoint.read("w"), torch.ones(2))


def test_a_failure_leaves_nothing(tmp_path):
    def fail():
        with checkpoint_writer(tmp_path / "model", {}, max_shard_bytes=1) as writer:
            writer.add("w", torch.zeros(2))
            writer.add("v", torch.zeros(2))
            writer.add("w", torch.zeros(2))

    assert refusal(fail) == "w: written twice; each name once"
    assert not list(tmp_path.iterdir())


def test_nothing_to_write_and_no_room_to_write_it(tmp_path):
    assert "no tensors" in refusal(write_checkpoint, tmp_path / "model", {}, {})
    with pytest.raises(ValueError, match="max_shard_bytes is 0"):
        write_checkpoint(tmp_path / "model", {"w": torch.ones(1)}, {}, max_shard_bytes=0)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def small_disk():
    with file_size_limit(100_000):
        yield


def test_strided_tensors_and_gradients_are_written_plain(tmp_path):
    weight = torch.arange(6.0).reshape(2, 3).requires_grad_()
    for name in ("a", "b"):
        write_tensors(tmp_path / name, {"w": weight, "t": weight.T}, ("key", "value"))
    with safe_open(tmp_path / "a", "pt") as file:
        assert file.metadata() == {"key": "value"}
        assert torch.equal(file.get_tensor("t"), weight.detach().T)
    assert sha256_file(tmp_path / "a") == sha256_file(tmp_path / "b")


def test_others_may_read_what_any_file_of_this_person_lets_them(tmp_path):
    (tmp_path / "plain").touch()
    write_tensors(tmp_path / "w.safetensors", {"w": torch.zeros(1)})
    assert (tmp_path / "w.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.usefixtures("small_disk")
def test_a_full_disk_is_named_and_leaves_nothing(tmp_path):
    weight = {"w": torch.zeros(100_000)}
    with pytest.raises(OSError, match=r"File too large: '.*/w.safetensors'$"):
        write_tensors(tmp_path / "w.safetensors", weight)
    with pytest.raises(OSError, match=r"File too large: '.*/model'$"):
        write_checkpoint(tmp_path / "model", weight, {})
    assert not list(tmp_path.iterdir())
