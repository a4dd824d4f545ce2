import os
import random
import zipfile

import pytest
import torch
from tests.tiny import write_tiny_qwen_vl
from tests.unit.checkpoints.refusal import refusal

from subspacelab.checkpoints import open_source


class Payload:
    """Unpickling it would leave a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path, zipped):
    content = {"w": torch.zeros(2), "extra": Payload(tmp_path / "ran")}
    torch.save(content, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    message = refusal(open_source, tmp_path)
    assert "pytorch_model.bin: a pickle that holds more than tensors" in message
    assert "mkdir" in message
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"model": {"w": torch.zeros(2)}, "epoch": 3}, "entry 'model' is a dict, not a tensor"),
        ([torch.zeros(2)], "holds a list"),
        ({"w": torch.zeros(2, 2).to_sparse()}, "w has layout torch.sparse_coo"),
        ({"w": torch.empty(2, 2, device="meta")}, "w has a shape and no data"),
        ({"w": torch.zeros(1).expand(1 << 20, 1 << 20)}, "w is larger than its data, an expanded view"),
        ({3: torch.zeros(1)}, "entry 3 is a Tensor"),
    ],
)
def test_content_that_is_no_dictionary_of_tensors(tmp_path, content, said):
    torch.save(content, tmp_path / "pytorch_model.bin")
    assert said in refusal(open_source, tmp_path)


@pytest.mark.parametrize("format", ["bin", "legacy_bin"])
def test_a_truncated_file_is_named(tmp_path, format):
    write_tiny_qwen_vl(tmp_path, format=format)
    file = tmp_path / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    def read_all(folder):
        with open_source(folder) as checkpoint:
            for name in checkpoint.names:
                checkpoint.read(name)

    assert "pytorch_model.bin: truncated or damaged" in refusal(read_all, tmp_path)


def test_a_compressed_archive_is_not_taken_for_numbers(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    torch.save({"w": torch.zeros(64, 64)}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    assert "data.pkl is compressed" in refusal(open_source, tmp_path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("format", ["bin", "legacy_bin"])
def test_a_damaged_byte_is_read_or_one_line(tmp_path, format):
    write_tiny_qwen_vl(tmp_path, format=format, tensors={"model.a": torch.ones(3, 4)})
    file, rng = tmp_path / "pytorch_model.bin", random.Random(0)
    content = file.read_bytes()
    for _ in range(60):
        mutant = bytearray(content)
        mutant[rng.randrange(len(mutant))] = rng.randrange(256)
        file.write_bytes(mutant)
        try:
            checkpoint = open_source(tmp_path)
            assert all(checkpoint.read(name).numel() >= 0 for name in checkpoint.names)
        except ValueError as e:
            assert "\n" not in str(e)  # noqa: PT017


def test_something_else_under_the_name(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"<html>404</html>")
    assert "not a torch file" in refusal(open_source, tmp_path)


def test_parameters_and_strided_tensors_come_out_plain(tmp_path):
    weight = torch.arange(6.0).reshape(2, 3)
    torch.save({"p": torch.nn.Parameter(weight), "t": weight.T}, tmp_path / "pytorch_model.bin")
    with open_source(tmp_path) as checkpoint:
        assert torch.equal(checkpoint.read("p"), weight)
        assert not checkpoint.read("p").requires_grad
        assert checkpoint.read("t").is_contiguous()
        assert torch.equal(checkpoint.read("t"), weight.T)
        assert torch.equal(checkpoint.read_rows("t", 1, 2), weight.T[1:2])
        assert len(checkpoint.digest("p")) == 64
