import pytest
from tests.checkpoints.refusal import refusal
from tests.tiny import write_tiny_qwen_vl

from subspacelab.checkpoints import open_checkpoint
from subspacelab.checkpoints.safetensors_shard import bits


@pytest.mark.parametrize("keep", [4, 100, -1])
def test_a_truncated_file_is_named_wherever_it_is_cut(tmp_path, keep):
    write_tiny_qwen_vl(tmp_path, sharded=True)
    shard = tmp_path / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:keep])
    assert "model-00002-of-00002.safetensors: truncated" in refusal(open_checkpoint, tmp_path)


def test_something_else_under_the_name(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"<html>404</html>" * 10)
    assert "not a safetensors file" in refusal(open_checkpoint, tmp_path)


def test_widths_of_stored_dtypes():
    assert [bits(code) for code in ("F64", "BF16", "F8_E4M3", "F4", "BOOL", "I32", "F6_E2M3")] == [
        *(64, 16, 8, 4, 8, 32, 6)
    ]
