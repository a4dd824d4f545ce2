"""Snapshots: everything that a killed training needs to continue to the same bytes as an uninterrupted one.

One safetensors file, written whole or not at all: weights, optimizer state and other tensors, and a JSON record in its
metadata, with a SHA-256 over both.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from subspacelab.checkpoints import read_tensors, write_tensors

_KEY = "training"


@dataclass(frozen=True)
class Snapshot:
    """What `write_snapshot` wrote."""

    record: dict[str, Any]
    """Progress and identity of the training, as JSON; `groups` are the optimizer's."""
    tensors: dict[str, Tensor]
    """`model/...`, `optimizer/...`, and tensors of further parts."""

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors of one part by their own names."""
        return {key.removeprefix(f"{name}/"): t for key, t in self.tensors.items() if key.startswith(f"{name}/")}

    def restore(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Loads weights and optimizer state."""
        module.load_state_dict(self.part("model"))
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in self.part("optimizer").items():
            index, _, key = name.partition("/")
            state.setdefault(int(index), {})[key] = tensor
        optimizer.load_state_dict({"state": state, "param_groups": self.record["groups"]})


def write_snapshot(
    path: Path,
    record: Mapping[str, Any],
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    **parts: Mapping[str, Tensor],
) -> None:
    """Writes `record`, weights, optimizer state and the tensors of further `parts`."""
    of_optimizer = optimizer.state_dict()
    parts = {"model": module.state_dict(), "optimizer": _by_name(of_optimizer["state"]), **parts}
    tensors = _apart({f"{part}/{name}": tensor for part, named in parts.items() for name, tensor in named.items()})
    text = json.dumps({**record, "groups": of_optimizer["param_groups"]}, sort_keys=True)
    # One value: several are written in an order that changes.
    write_tensors(path, tensors, (_KEY, json.dumps({"record": text, "sha256": _digest(text, tensors)})))


def read_snapshot(path: Path) -> Snapshot:
    """Reads what `write_snapshot` wrote, bit for bit; ValueError, naming the file, for anything else."""
    tensors, metadata = read_tensors(path)
    try:
        sealed = TypeAdapter(dict[str, str]).validate_json(metadata.get(_KEY, "{}"))
    except ValidationError:
        sealed = {}
    if sealed.get("sha256") != _digest(sealed.get("record", ""), tensors):
        raise ValueError(
            f"{path}: not a training's state, or damaged since it was written; restore it, or delete its folder and "
            "train again"
        )
    return Snapshot(json.loads(sealed["record"]), tensors)


def _by_name(state: Mapping[int, Mapping[str, Any]]) -> dict[str, Tensor]:
    return {f"{index}/{key}": torch.as_tensor(value) for index, entry in state.items() for key, value in entry.items()}


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors; those that share memory with an earlier one (tied weights), refused by safetensors, are copied."""
    places: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        apart[name] = tensor.clone() if tensor.data_ptr() in places else tensor
        places.add(tensor.data_ptr())
    return apart


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the record and of each tensor's name, dtype, shape and bytes."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        flat = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {flat.dtype} {list(flat.shape)}\n".encode())
        digest.update(flat.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
