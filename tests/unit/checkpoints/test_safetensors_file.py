import json
from pathlib import Path

import pytest
from tests.tiny import write_tiny_qwen_vl
from tests.unit.checkpoints.refusal import refusal

from subspacelab.checkpoints import open_checkpoint
from subspacelab.checkpoints.safetensors_file import bits, header_length, parse_header


def test_it_says_what_the_safetensors_library_says(tmp_path: Path) -> None:
    write_tiny_qwen_vl(tmp_path)
    content = (tmp_path / "model.safetensors").read_bytes()
    length = header_length(content[:8], "x")
    placed = parse_header(content[8 : 8 + length], "x", "model.safetensors")
    with open_checkpoint(tmp_path) as checkpoint:
        assert [p.info for p in placed] == [checkpoint.info(name) for name in checkpoint.names_in_file_order()]
        for p in placed:
            assert content[p.start : p.stop] == checkpoint.read(p.info.name).numpy().tobytes()


@pytest.mark.parametrize("head", [b"", b"\x00" * 8, b"version ", b"\x01" + b"\x00" * 7])
def test_a_length_that_cannot_be_one(head: bytes) -> None:
    assert "not a safetensors file" in refusal(header_length, head, "lab/tiny: model.safetensors")


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]},
        {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]},
        {"dtype": "WORDS", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": 2, "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2]},
        {"dtype": "F0", "shape": [2], "data_offsets": [0, 0]},
        {"dtype": "F" + "9" * 20, "shape": [], "data_offsets": [0, 0]},
        {"dtype": 32, "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [float("inf")], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1 << 63, 0], "data_offsets": [0, 0]},
        {"dtype": "F32", "shape": [0] * 100, "data_offsets": [0, 0]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]},
        {"dtype": "F32", "shape": [1], "data_offsets": "04"},
        {"a": "text"},
        None,
        [],
    ],
)
def test_a_damaged_header_is_refused_by_the_files_name(entry: object) -> None:
    message = refusal(parse_header, json.dumps({"a.weight": entry}).encode(), "lab/tiny: x", "x")
    assert message.startswith("lab/tiny: x: damaged safetensors header")


@pytest.mark.parametrize(
    "header",
    [
        *(b"{", b"[1]", b"\xff\xfe", b"3", b"[" * 100_000, b'{"a":' * 100_000),
        *(b'{"__metadata__": {"step": 3}}', b'{"__metadata__": []}', b'{"__metadata__": {"a": {}}}'),
        b'{"\\ud800": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}',
        b'{"__metadata__": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}',
    ],
)
def test_what_is_no_header(header: bytes) -> None:
    assert "damaged safetensors header" in refusal(parse_header, header, "x", "x")


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
