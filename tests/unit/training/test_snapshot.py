from pathlib import Path

import pytest
import torch
from tests.faults.small_disk import file_size_limit
from torch import nn

from subspacelab.checkpoints import write_tensors
from subspacelab.training.muon import muon_adamw
from subspacelab.training.snapshot import read_snapshot, write_snapshot


class Tied(nn.Module):
    """A head that shares its weight with the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.hidden, self.head = nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.hidden(self.embed(ids)))


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_what_is_written_comes_back_to_the_last_bit(tmp_path: Path, kind: str) -> None:
    def fresh() -> tuple[Tied, torch.optim.Optimizer]:
        module = Tied()
        parameters = module.parameters()
        return module, muon_adamw(module, learning_rate=0.1, scale=3.0) if kind == "muon" else torch.optim.AdamW(
            parameters
        )

    def step(module: Tied, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        module(torch.arange(5)).square().sum().backward()
        optimizer.step()

    one, two = fresh(), fresh()
    step(*one)
    write_snapshot(tmp_path / "a", {"at": 0.1, "best": float("inf")}, *one, more={"x": torch.arange(3)})
    found = read_snapshot(tmp_path / "a")
    found.restore(*two)
    assert (found.record["at"], found.record["best"]) == (0.1, float("inf"))
    assert found.part("more")["x"].tolist() == [0, 1, 2]
    write_snapshot(tmp_path / "b", {"at": 0.1, "best": float("inf")}, *two, more={"x": torch.arange(3)})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert two[0].head.weight is two[0].embed.weight
    step(*one)
    step(*two)
    assert all(torch.equal(p, q) for p, q in zip(one[0].parameters(), two[0].parameters(), strict=True))


def test_a_full_disk_is_the_systems_error_and_leaves_the_snapshot_before(tmp_path: Path) -> None:
    module, path = nn.Linear(100, 100), tmp_path / "snapshot.safetensors"
    optimizer = torch.optim.AdamW(module.parameters())
    write_snapshot(path, {"step": 1}, module, optimizer)
    before = path.read_bytes()
    with (
        file_size_limit(len(before) // 2),
        pytest.raises(OSError, match=r"File too large: '.*/snapshot.safetensors'$"),
    ):
        write_snapshot(path, {"step": 2}, module, optimizer)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["snapshot.safetensors"]


@pytest.mark.parametrize(
    "metadata", [("format", "pt"), ("training", "{"), ("training", '{"record": "{}", "sha256": "0"}')]
)
def test_tensors_that_are_no_snapshot_are_named(tmp_path: Path, metadata: tuple[str, str]) -> None:
    write_tensors(tmp_path / "model.safetensors", {"model/w": torch.zeros(2)}, metadata)
    with pytest.raises(ValueError, match=r"model\.safetensors: not a training's state, .*train again") as e:
        read_snapshot(tmp_path / "model.safetensors")
    assert "\n" not in str(e.value)
