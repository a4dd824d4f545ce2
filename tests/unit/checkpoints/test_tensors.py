import resource

import pytest
import torch
from safetensors import safe_open

from subspacelab.checkpoints import write_checkpoint, write_tensors
from subspacelab.core.files import sha256_file


@pytest.fixture
def small_disk():
    """No file may grow beyond 100 kB: for the writer as good as a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


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
