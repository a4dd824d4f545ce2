"""Snapshots: all that a killed training needs to continue to the same bytes as an unbroken one."""

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn

from subspacelab.core.files import write_beside

_KEYS = {"step", "fingerprint", "module", "optimizer", "random"}


def write_snapshot(
    path: Path, *, step: int, module: nn.Module, optimizer: torch.optim.Optimizer, fingerprint: str
) -> None:
    """Writes weights, optimizer state, random state and the number of steps done, whole or not at all."""
    state = {
        "step": step,
        "fingerprint": fingerprint,
        "module": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": torch.get_rng_state(),
    }
    with write_beside(path) as partial, partial.open("wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as e:  # torch's own, under which lies what the system said
            if isinstance(e.__context__, OSError):
                raise e.__context__ from None
            raise


def resume_snapshot(path: Path, *, module: nn.Module, optimizer: torch.optim.Optimizer, fingerprint: str) -> int:
    """Restores what `write_snapshot` wrote and returns the number of steps done.

    Without a snapshot, or with one of another training (its fingerprint differs), nothing is touched: returns 0.
    """
    if not path.is_file():
        return 0
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    except (RuntimeError, EOFError, pickle.UnpicklingError) as e:
        raise ValueError(f"{path}: not a snapshot that can be read ({type(e).__name__}); delete it") from e
    if not isinstance(state, dict) or not state.keys() >= _KEYS:
        raise ValueError(f"{path}: not a snapshot of a training; delete it")
    if state["fingerprint"] != fingerprint:
        return 0
    module.load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["random"])
    return int(state["step"])
