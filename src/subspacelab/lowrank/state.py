"""A training on disk: weights, optimizer, scheduler and history in one file, and the finished model beside it."""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from subspacelab.checkpoints import read_tensors, require_finite, write_tensors
from subspacelab.files import read_json, write_json
from subspacelab.lowrank.architectures import LowRankModel, ModelSpec
from subspacelab.lowrank.normalisation import Normalisation

BEST_MODEL, BEST_STATE, LAST = "best_model", "best_state.safetensors", "last.safetensors"
_KEY = "training"


@dataclass
class Progress:
    """How far a training is."""

    epoch: int = 0
    """Epochs done, over all resumes."""
    until: int = 0
    """Epochs to do, over all resumes."""
    best_epoch: int = 0
    """Epoch of the smallest validation MSE."""
    best_mse: float = float("inf")
    """That MSE."""
    steps: int = 0
    """Optimizer steps done."""
    finished: bool = False
    """Whether it came to its end (the last epoch, or early stopping)."""
    history: list[dict[str, float]] = field(default_factory=list)
    """One entry per epoch: losses, learning rate, live rank."""
    scheduler: dict[str, Any] = field(default_factory=dict)
    """State of ReduceLROnPlateau."""


@dataclass(frozen=True)
class SavedTraining:
    """What `write_training` wrote."""

    job: dict[str, Any]
    """What was trained, how, on what: a training of another job is not continued."""
    groups: list[dict[str, Any]]
    """The optimizer's groups."""
    spec: ModelSpec
    """Of the model."""
    progress: Progress
    """How far."""
    tensors: dict[str, Tensor]
    """`model/...`, `optimizer/...`, `allocator/...`."""

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors of one part by their own names."""
        return {key.removeprefix(f"{name}/"): t for key, t in self.tensors.items() if key.startswith(f"{name}/")}


def write_training(
    path: Path,
    job: dict[str, Any],
    progress: Progress,
    model: LowRankModel,
    optimizer: torch.optim.Optimizer,
    allocator: dict[str, Tensor],
) -> None:
    """Writes everything that the next epoch needs, in one file, whole or not at all."""
    tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"optimizer/{name}": tensor for name, tensor in _optimizer_tensors(optimizer).items()}
    tensors |= {f"allocator/{name}": tensor for name, tensor in allocator.items()}
    record = {"job": job, "progress": asdict(progress), "groups": optimizer.state_dict()["param_groups"]}
    record["spec"] = asdict(model.spec)
    write_tensors(path, tensors, (_KEY, json.dumps(record, sort_keys=True)))


def read_training(path: Path) -> SavedTraining:
    """Reads what `write_training` wrote; anything else is a ValueError that names the file."""
    tensors, metadata = read_tensors(path)
    try:
        record = json.loads(metadata[_KEY])
        progress = Progress(**record["progress"])
        return SavedTraining(record["job"], record["groups"], _spec_of(record["spec"]), progress, tensors)
    except (KeyError, TypeError, json.JSONDecodeError) as e:
        raise ValueError(f"{path}: not a training's state ({e!r}); delete it and train again") from e


def _spec_of(content: dict[str, Any]) -> ModelSpec:
    known = {f.name: content[f.name] for f in fields(ModelSpec)}
    return ModelSpec(**known | {"normalisation": Normalisation(**content["normalisation"])})


def restore(saved: SavedTraining, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Loads weights and optimizer state."""
    model.load_state_dict(saved.part("model"))
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in saved.part("optimizer").items():
        index, _, key = name.partition("/")
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": saved.groups})


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{index}/{key}": torch.as_tensor(value) for index, entry in state.items() for key, value in entry.items()}


def write_model(folder: Path, model: LowRankModel, *, epoch: int, val_mse: float, seed: int) -> None:
    """best_model.safetensors and best_model.json (architecture, sizes, normalisation, epoch, seed of the split)."""
    write_tensors(folder / f"{BEST_MODEL}.safetensors", model.state_dict())
    training = {"epoch": epoch, "val_mse": val_mse, "seed": seed}
    write_json(folder / f"{BEST_MODEL}.json", asdict(model.spec) | training)


@dataclass(frozen=True)
class TrainedModel:
    """The best model of a results folder."""

    model: LowRankModel
    """In evaluation mode."""
    epoch: int
    """It is from."""
    seed: int
    """Of the training, and of the split whose test pictures it has not seen."""


def load_model(folder: Path) -> TrainedModel:
    """Reads what `write_model` wrote; a folder without it, or with something else, is a ValueError."""
    path = folder / f"{BEST_MODEL}.json"
    if not path.is_file():
        raise ValueError(f"{folder}: no trained model there ({path.name} is missing); train it with `lowrank train`")
    content = read_json(path)
    try:
        epoch, seed = int(content["epoch"]), int(content["seed"])
        model = LowRankModel(_spec_of(content))
    except (KeyError, TypeError) as e:
        raise ValueError(f"{path}: does not describe a model ({e!r}); train it again") from e
    tensors, _ = read_tensors(folder / f"{BEST_MODEL}.safetensors")
    for name, tensor in tensors.items():
        require_finite(f"{folder}: {name}", tensor)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as e:
        reason = " ".join(str(e).split())[:200]
        raise ValueError(f"{folder}: weights and {BEST_MODEL}.json do not fit ({reason}); train it again") from e
    return TrainedModel(model.eval(), epoch, seed)
