import gc
import json
import os
from pathlib import Path

import pytest
import torch
from tests.tiny import LAYOUTS, layout_name, tiny_qwen_vl_shapes, tiny_qwen_vl_tensors, write_tiny_qwen_vl
from tests.unit.checkpoints.refusal import refusal

from subspacelab.checkpoints import Source, matrix_shape, open_checkpoint

CONTAINERS = [("safetensors", False), ("safetensors", True), ("bin", False), ("bin", True), ("legacy_bin", False)]


@pytest.mark.parametrize(("format", "sharded"), CONTAINERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_container_gives_back_every_tensor(tmp_path, format, sharded, dtype):
    write_tiny_qwen_vl(tmp_path, format=format, sharded=sharded, dtype=dtype)
    expected = tiny_qwen_vl_tensors(dtype=dtype)
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.names == sorted(expected)
        assert sorted(checkpoint.names_in_file_order()) == checkpoint.names
        assert checkpoint.num_entries == sum(t.numel() for t in expected.values())
        for name, tensor in expected.items():
            info = checkpoint.info(name)
            assert (info.shape, info.nbytes) == (tuple(tensor.shape), tensor.nbytes)
            assert info.dtype == {torch.float32: "F32", torch.bfloat16: "BF16"}[dtype]
            assert torch.equal(checkpoint.read(name), tensor)
            assert checkpoint.read(name).dtype == dtype
            assert torch.equal(checkpoint.read_rows(name, 1, 3), tensor[1:3])


def test_digests_depend_on_the_content_and_not_on_the_container(tmp_path):
    digests = []
    for i, (format, sharded) in enumerate(CONTAINERS):
        write_tiny_qwen_vl(tmp_path / str(i), format=format, sharded=sharded, dtype=torch.bfloat16)
        with open_checkpoint(tmp_path / str(i)) as checkpoint:
            digests.append([checkpoint.digest(name) for name in checkpoint.names])
    assert all(each == digests[0] for each in digests)
    assert len(set(digests[0])) == len(digests[0])


def test_digest_tells_shape_and_dtype_apart(tmp_path):
    zeros = {
        "a": torch.zeros(4, 6),
        "b": torch.zeros(6, 4),
        "c": torch.zeros(4, 6, dtype=torch.int32),
        "d": torch.zeros(()),
    }
    torch.save(zeros, tmp_path / "pytorch_model.bin")
    with open_checkpoint(tmp_path) as checkpoint:
        assert len({checkpoint.digest(name) for name in zeros}) == 4


@pytest.mark.parametrize("layout", LAYOUTS)
def test_four_layouts_hold_the_same_weights(tmp_path, layout):
    write_tiny_qwen_vl(tmp_path, layout=layout, sharded=True)
    with open_checkpoint(tmp_path) as checkpoint:
        for name, tensor in tiny_qwen_vl_tensors().items():
            assert torch.equal(checkpoint.read(layout_name(name, layout)), tensor)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["legacy", "new", "base_model"])
def test_transformers_finds_every_key_of_the_tiny_checkpoints(tmp_path, layout):
    from transformers import AutoModel, Qwen2_5_VLForConditionalGeneration

    write_tiny_qwen_vl(tmp_path, layout=layout)
    loader = AutoModel if layout == "base_model" else Qwen2_5_VLForConditionalGeneration
    model, report = loader.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.num_parameters() == sum(t.numel() for t in tiny_qwen_vl_tensors().values())


def test_one_file_is_a_checkpoint_too(tmp_path):
    write_tiny_qwen_vl(tmp_path)
    with open_checkpoint(tmp_path / "model.safetensors") as checkpoint:
        assert checkpoint.names == sorted(tiny_qwen_vl_shapes())
        assert checkpoint.config["model_type"] == "qwen2_5_vl"
        assert checkpoint.source == Source(
            str(tmp_path / "model.safetensors"), tmp_path / "model.safetensors", None, "model"
        )


def test_shards_are_opened_one_after_the_other_in_file_order(tmp_path):
    write_tiny_qwen_vl(tmp_path, sharded=True)
    with open_checkpoint(tmp_path) as checkpoint:
        shards = [checkpoint.info(name).shard for name in checkpoint.names_in_file_order()]
    assert shards == sorted(shards)
    assert len(set(shards)) == 2


def test_tensors_outlive_the_checkpoint(tmp_path):
    write_tiny_qwen_vl(tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        weight = checkpoint.read("model.norm.weight")
    assert torch.equal(weight, tiny_qwen_vl_tensors()["model.norm.weight"])


def test_an_unknown_name_is_refused_with_the_nearest_one(tmp_path):
    write_tiny_qwen_vl(tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        assert "did you mean model.norm.weight?" in refusal(checkpoint.info, "model.norms.weight")
        assert "rows 0:99" in refusal(checkpoint.read_rows, "model.norm.weight", 0, 99)


def test_shapes_become_matrices():
    assert matrix_shape((1280, 3, 2, 14, 14)) == (1280, 1176)
    assert matrix_shape([7, 5]) == (7, 5)
    assert "[7]" in refusal(matrix_shape, [7])


def test_a_name_the_index_promises_and_the_shard_lacks(tmp_path):
    write_tiny_qwen_vl(tmp_path, sharded=True)
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.ghost.weight"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(content))
    assert "model.ghost.weight is not in it" in refusal(open_checkpoint, tmp_path)


@pytest.mark.parametrize("config", ["[1, 2]", "{not json", "version https://git-lfs.github.com/spec/v1\n"])
def test_a_config_that_is_none(tmp_path, config):
    write_tiny_qwen_vl(tmp_path)
    (tmp_path / "config.json").write_text(config)
    assert "config.json" in refusal(open_checkpoint, tmp_path)


def anonymous_mib() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) / 1024


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="RssAnon is Linux's")
@pytest.mark.parametrize("format", ["safetensors", "bin"])
def test_reading_rows_takes_no_memory_of_the_size_of_the_file(tmp_path, format):
    # 150 MB of bf16: what may grow is the interpreter and one chunk of rows, well below 40 MB (a digest's are 16 MiB).
    tensors = {"big.weight": torch.ones(18_750, 4_000, dtype=torch.bfloat16)}
    write_tiny_qwen_vl(tmp_path, format=format, tensors={f"model.{k}": v for k, v in tensors.items()})
    del tensors
    gc.collect()
    before, peak, total = anonymous_mib(), 0.0, 0.0
    with open_checkpoint(tmp_path) as checkpoint:
        for start in range(0, 18_750, 125):
            total += float(checkpoint.read_rows("model.big.weight", start, start + 125).sum(dtype=torch.float32))
            peak = max(peak, anonymous_mib())
        checkpoint.digest("model.big.weight")
        peak = max(peak, anonymous_mib())
    assert total == 75_000_000  # sums of 2,500,000 ones are exact in float32
    assert peak - before < 40
