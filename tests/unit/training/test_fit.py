"""The loop on a network with dropout: broken or not, the same bytes."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from subspacelab.training.fit import FitPlan, fit
from subspacelab.training.muon import MuonAdamW


class Killed(Exception):
    """Stands for whatever ends a run."""


def _network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))


def _optimizer(network: nn.Module) -> torch.optim.Optimizer:
    matrices = [p for p in network.parameters() if p.ndim == 2]
    vectors = [p for p in network.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "muon": True, "scale": 10.0}, {"params": vectors, "muon": False}]
    return MuonAdamW(groups, lr=1e-2)


def _train(plan: FitPlan, kill_at: int | None = None) -> tuple[nn.Module, list[tuple[int, dict[str, float]]]]:
    network, curve = _network(), []

    def loss_of(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        inputs = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
        loss = (network(inputs) - inputs.sum(1, keepdim=True)).square().mean()
        return loss, {"double": 2 * loss}

    def log(metrics: Mapping[str, float], step: int) -> None:
        curve.append((step, dict(metrics)))
        if step == kill_at:
            raise Killed

    fit(network, _optimizer(network), loss_of, plan, log=log)
    return network, curve


@pytest.fixture
def plan(tmp_path: Path) -> FitPlan:
    return FitPlan(
        num_steps=12,
        learning_rate=lambda step: 0.01 / (step + 1),
        clip=1.0,
        snapshot=tmp_path / "snapshot.safetensors",
        snapshot_every=4,
        fingerprint="one",
        log_every=1,
    )


def test_a_killed_run_continues_to_the_same_bytes(plan: FitPlan, tmp_path: Path) -> None:
    whole, whole_curve = _train(replace(plan, snapshot=tmp_path / "other.safetensors"))
    with pytest.raises(Killed):
        _train(plan, kill_at=7)
    resumed, curve = _train(plan)
    assert curve == whole_curve[4:], "the curve goes on from the snapshot after step 4"
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_a_run_killed_after_its_last_step_takes_none_again(plan: FitPlan) -> None:
    whole, _ = _train(replace(plan, snapshot_every=5))
    again, curve = _train(plan)
    assert curve == []
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


def test_a_snapshot_of_another_training_is_not_continued(plan: FitPlan) -> None:
    with pytest.raises(Killed):
        _train(plan, kill_at=7)
    _, curve = _train(replace(plan, fingerprint="two"))
    assert curve[0][0] == 1


def test_a_broken_snapshot_is_named(plan: FitPlan) -> None:
    plan.snapshot.write_bytes(b"not a snapshot")
    with pytest.raises(ValueError, match=r"snapshot\.safetensors: missing or broken"):
        _train(plan)


def test_the_curve_holds_what_people_look_at(plan: FitPlan) -> None:
    _, curve = _train(plan)
    step, values = curve[-1]
    assert step == 12
    assert set(values) == {"loss", "double", "gradient_norm", "learning_rate"}
    assert values["double"] == 2 * values["loss"]


def test_a_training_that_diverges_says_so_in_one_line_and_leaves_the_weights(plan: FitPlan) -> None:
    network = _network()
    before = [p.clone() for p in network.parameters()]
    with pytest.raises(ValueError, match=r"diverged at step 0: loss inf.*lower the learning rate") as caught:
        fit(network, _optimizer(network), lambda _: (network(torch.ones(1, 4)).sum() * torch.inf, {}), plan, log=print)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(p, q) for p, q in zip(network.parameters(), before, strict=True))
