import json

import pytest
from tests.tiny import write_tiny_qwen_vl
from tests.unit.checkpoints.refusal import refusal

from subspacelab.checkpoints import open_checkpoint
from subspacelab.checkpoints.safetensors_file import bits


@pytest.mark.parametrize("keep", [4, 100, -1])
def test_a_truncated_file_is_named_wherever_it_is_cut(tmp_path, keep):
    write_tiny_qwen_vl(tmp_path, sharded=True)
    shard = tmp_path / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:keep])
    assert "model-00002-of-00002.safetensors: truncated" in refusal(open_checkpoint, tmp_path)


def test_something_else_under_the_name(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"<html>404</html>" * 10)
    assert "not a safetensors file" in refusal(open_checkpoint, tmp_path)


def test_a_file_larger_than_any_memory_is_read_where_it_is_asked_for(tmp_path):
    rows, row = 1 << 20, 1 << 20  # a terabyte of holes; only the first rows are written
    header = {"big": {"dtype": "U8", "shape": [rows, row], "data_offsets": [0, rows * row]}}
    text = json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text + bytes([1, 2, 3]))
        file.truncate(8 + len(text) + rows * row)
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.info("big").nbytes == 1 << 40
        assert checkpoint.read_rows("big", 0, 1)[0, :4].tolist() == [1, 2, 3, 0]
        assert not checkpoint.read_rows("big", rows - 1, rows).any()


def test_tensors_that_overlap_or_leave_a_hole_are_a_damaged_header(tmp_path):
    write_tiny_qwen_vl(tmp_path)
    path = tmp_path / "model.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    names = sorted((name for name in header if name != "__metadata__"), key=lambda n: header[n]["data_offsets"])
    start, stop = header[names[1]]["data_offsets"]
    for shift in (-2, 2):
        header[names[1]]["data_offsets"] = [start + shift, stop + shift]
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
        assert "does not begin where the tensor before it ends" in refusal(open_checkpoint, tmp_path)


def test_widths_of_stored_dtypes():
    assert [bits(code) for code in ("F64", "BF16", "F8_E4M3", "F4", "BOOL", "I32", "F6_E2M3")] == [
        *(64, 16, 8, 4, 8, 32, 6)
    ]
