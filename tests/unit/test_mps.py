"""On a Mac `auto` finds mps, which has no float64: what needs it is done on the CPU, to the numbers of a CPU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from tests.tiny import write_tiny_qwen_vl
from tests.unit.lowrank.caches import write_random_cache
from tests.unit.lowrank.trainings import train_tiny

import subspacelab as sl
from subspacelab.core.devices import choose_device


@pytest.fixture(autouse=True)
def mac(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine with mps and no CUDA, on which nothing can be computed by mps."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto").type == "mps"
    with pytest.raises((RuntimeError, AssertionError, NotImplementedError)):
        torch.ones(1, device="mps")


def checkpoints(count: int) -> list[Path]:
    return [write_tiny_qwen_vl(Path(f"{seed}"), seed=seed) for seed in range(count)]


def decompose(device: str) -> list[Any]:
    found = sl.rotation.decompose(*checkpoints(1), rank=4, device=device)
    return [tensor for _, svd in found for tensor in (svd.U, svd.S, svd.Vh)]


def compare_rotations(device: str) -> list[Any]:
    return [sl.rotation.compare(*checkpoints(3), include="merger", null_draws=1, device=device).layers]


def analyze_norms(device: str) -> list[Any]:
    found = sl.norms.analyze(*checkpoints(1), device=device)
    return [found.norms, found.embeddings]


def trained() -> tuple[sl.lowrank.Features, Path]:
    features = write_random_cache(Path("features"), pictures=True)
    train_tiny(features, Path("results"), epochs=1)
    return features, Path("results")


def compare_networks(device: str) -> list[Any]:
    return [sl.lowrank.compare(*trained(), device=device).images]


def visualize_networks(device: str) -> list[Any]:
    views = sl.lowrank.visualize(*trained(), device=device)
    return [views.curve, torch.from_numpy(views.approximations["Sketch"])]


COMMANDS = [decompose, compare_rotations, analyze_norms, compare_networks, visualize_networks]


@pytest.mark.parametrize("command", COMMANDS)
def test_auto_picks_no_device_that_cannot_do_it(command: Callable[[str], list[Any]]) -> None:
    expected = command("cpu")
    for device in ("auto", "mps"):
        for found, wanted in zip(command(device), expected, strict=True):
            if isinstance(wanted, pd.DataFrame):
                pd.testing.assert_frame_equal(found, wanted, check_exact=True)
            elif isinstance(wanted, torch.Tensor):
                assert torch.equal(found, wanted)
            else:
                assert found == wanted
