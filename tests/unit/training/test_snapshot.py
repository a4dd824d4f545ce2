from pathlib import Path

import pytest
import torch
from tests.faults.small_disk import file_size_limit
from torch import nn

from subspacelab.training.snapshot import resume_snapshot, write_snapshot


def test_a_full_disk_is_the_systems_error_and_leaves_the_snapshot_before(tmp_path: Path) -> None:
    module, path = nn.Linear(100, 100), tmp_path / "snapshot.pt"
    optimizer = torch.optim.AdamW(module.parameters())
    write_snapshot(path, step=1, module=module, optimizer=optimizer, fingerprint="a")
    before = path.read_bytes()
    with (
        file_size_limit(len(before) // 2),
        pytest.raises(OSError, match=r"File too large: '.*/snapshot.pt'$"),
    ):
        write_snapshot(path, step=2, module=module, optimizer=optimizer, fingerprint="a")
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["snapshot.pt"]


@pytest.mark.parametrize("content", [{"step": 1}, [1], None])
def test_what_is_no_snapshot_is_named_and_nothing_is_touched(tmp_path: Path, content: object) -> None:
    module, path = nn.Linear(2, 2), tmp_path / "snapshot.pt"
    before = module.weight.clone()
    torch.save(content, path) if content else path.write_bytes(b"")
    with pytest.raises(ValueError, match="snapshot.pt: not a snapshot .*; delete it"):
        resume_snapshot(path, module=module, optimizer=torch.optim.AdamW(module.parameters()), fingerprint="a")
    assert torch.equal(module.weight, before)
