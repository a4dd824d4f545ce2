import json
from pathlib import Path

import pytest
from tests.tiny import write_tiny_qwen_vl
from tests.unit.checkpoints.refusal import refusal

from subspacelab.checkpoints import open_checkpoint
from subspacelab.checkpoints.safetensors_file import header_length, parse_header


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
