"""A training on disk: weights, optimizer, scheduler and history in one file, with the finished model beside it."""

import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

import torch
from jaxtyping import Float
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor

from subspacelab.checkpoints import read_tensors, require_finite, write_tensors
from subspacelab.checkpoints.safetensors_file import SafetensorsShard
from subspacelab.core.files import read_json, write_json
from subspacelab.core.ownership import require_own_entries
from subspacelab.core.settings import validate
from subspacelab.lowrank.architectures import LowRankNet, ModelSpec
from subspacelab.training.snapshot import Snapshot, read_snapshot, write_snapshot

BEST_MODEL, BEST_STATE, LAST = "best_model", "best_state.safetensors", "last.safetensors"
MAX_SEED = 1 << 40
"""Largest seed: seeds are multiplied by a million and must fit into 64 bits."""


@dataclass
class TrainingProgress:
    """Progress of a training."""

    epoch: int = 0
    """Epochs done, over all resumes."""
    until: int = 0
    """Epochs to do, over all resumes."""
    best_epoch: int = 0
    """Epoch of the smallest validation MSE."""
    best_mse: float = float("inf")
    """The smallest validation MSE."""
    steps: int = 0
    """Optimizer steps done."""
    finished: bool = False
    """Whether it has ended (last epoch, or early stopping)."""
    history: list[dict[str, int | float]] = field(default_factory=list)
    """One entry per epoch: losses, learning rate, live rank."""
    scheduler: dict[str, Any] = field(default_factory=dict)
    """State of ReduceLROnPlateau."""


@dataclass(frozen=True)
class SavedTraining:
    """The content of a file by `write_training`."""

    job: dict[str, Any]
    """Identity of the training: a training with another job is not continued."""
    spec: ModelSpec
    """Specification of the model."""
    progress: TrainingProgress
    """Progress of the training."""
    snapshot: Snapshot
    """Weights, optimizer state, and those of the rank allocator."""

    @property
    def basis(self) -> Tensor | None:
        """PCA basis of the training pictures [dim, full rank] in float64; None in states of earlier versions."""
        directions = self.snapshot.part("pca").get("directions")
        return None if directions is None else directions.mT


def write_training(
    path: Path,
    job: dict[str, Any],
    progress: TrainingProgress,
    model: LowRankNet,
    optimizer: torch.optim.Optimizer,
    allocator: dict[str, Tensor],
    basis: Tensor | None,
) -> None:
    """Writes everything that the next epoch needs, and `SavedTraining.basis`, in one file, whole or not at all."""
    record = {"job": job, "progress": asdict(progress), "spec": asdict(model.spec)}
    # As rows, which is how `eigh` gives columns: products by what is read again are then the same to the last bit.
    pca = {} if basis is None else {"directions": basis.mT.contiguous()}
    write_snapshot(path, record, model, optimizer, allocator=allocator, pca=pca)


def read_training(path: Path) -> SavedTraining:
    """Reads what `write_training` wrote, bit for bit; ValueError, naming the file, for anything else."""
    snapshot = read_snapshot(path)
    try:
        record = _RECORD.validate_python(snapshot.record)
    except ValidationError as e:
        raise ValueError(
            f"{path}: not a training's state ({e.errors()[0]['msg']}); restore it, or delete its folder and train again"
        ) from e
    return SavedTraining(record.job, record.spec, record.progress, snapshot)


@dataclass(frozen=True)
class _Record:
    """Content of a state beside its tensors."""

    job: dict[str, Any]
    spec: ModelSpec
    progress: TrainingProgress


_RECORD = TypeAdapter(_Record)


def write_model(folder: Path, model: LowRankNet, *, epoch: int, val_mse: float, seed: int) -> None:
    """best_model.safetensors and best_model.json (architecture, sizes, normalisation, epoch, seed of the split)."""
    write_tensors(folder / f"{BEST_MODEL}.safetensors", model.state_dict())
    training = {"epoch": epoch, "val_mse": val_mse, "seed": seed}
    write_json(folder / f"{BEST_MODEL}.json", asdict(model.spec) | training)


@dataclass(frozen=True)
class LowRankModel:
    """A trained network with what is known of its training; called, it factorises.

    `a, b, approximation = model(x)` for raw features x [tokens, dim] or [batch, tokens, dim]: a [..., tokens, rank],
    b [..., rank, dim], and their product (refined, where the network does that). With `layernorm`, which cannot be
    undone, they are those of the normalised features.
    """

    network: LowRankNet
    """In evaluation mode."""
    epoch: int
    """Epoch of the weights."""
    seed: int
    """Seed of the training and of the split; the model has not seen the test pictures of this split."""
    features: str | None = None
    """`Features.digest` of the training's features; None if its files do not say."""
    val_mse: float = math.inf
    """MSE on the validation pictures."""
    basis: Tensor | None = None
    """PCA basis [dim, full rank] of its normalised training pictures; None if its files do not say."""

    @torch.no_grad()
    def __call__(self, x: Float[Tensor, "*batch tokens dim"]) -> tuple[Tensor, Tensor, Tensor]:
        """A, B and the approximation of raw features; ValueError for those of another shape."""
        wanted, normalisation = (self.network.spec.tokens, self.network.spec.dim), self.network.spec.normalisation
        if x.shape[-2:] != wanted:
            raise ValueError(
                f"x: {list(x.shape)}, the network takes [..., {wanted[0]}, {wanted[1]}]; train one on such"
            )
        single = x.ndim == 2
        a, b, approximation = self.network(normalisation.apply((x[None] if single else x).float()))
        found = normalisation.undo(a), b, normalisation.undo(approximation)
        return tuple(t[0] for t in found) if single else found  # type: ignore[return-value]

    def save(self, folder: Path | str) -> None:
        """Writes best_model.safetensors and best_model.json; ValueError for a folder that holds other things."""
        path = Path(folder) / f"{BEST_MODEL}.json"
        require_own_entries(Path(folder), [f"{BEST_MODEL}.safetensors", path.name], "a trained network")
        write_model(Path(folder), self.network, epoch=self.epoch, val_mse=self.val_mse, seed=self.seed)
        write_json(path, read_json(path) | {"features": self.features})  # a training's state, beside it, says so itself

    @classmethod
    def load(cls, folder: Path | str) -> "LowRankModel":
        """Reads what `save` wrote, or the best model of a results folder `<results>/<arch>`."""
        return load_model(Path(folder))


def load_model(folder: Path) -> LowRankModel:
    """Reads what `write_model` wrote; ValueError for a folder without it, or with something else."""
    path = folder / f"{BEST_MODEL}.json"
    if not path.is_file():
        raise ValueError(f"{folder}: no trained model there ({path.name} is missing); train it with `lowrank train`")
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: does not describe a model; train it again")
    of_spec = {f.name for f in fields(ModelSpec)}
    spec = validate(ModelSpec, {k: v for k, v in content.items() if k in of_spec}, where=str(path))
    training = validate(_Training, {k: v for k, v in content.items() if k not in of_spec}, where=str(path))
    weights = folder / f"{BEST_MODEL}.safetensors"
    _require_shapes(weights, spec)
    model = LowRankNet(spec)
    tensors, _ = read_tensors(weights)
    for name, tensor in tensors.items():
        require_finite(f"{folder}: {name}", tensor)
    model.load_state_dict(tensors)
    best = read_training(folder / BEST_STATE) if (folder / BEST_STATE).is_file() else None
    if best and best.progress.best_epoch == training.epoch:
        for name, tensor in best.snapshot.part("model").items():
            if not torch.equal(tensor, tensors[name]):
                raise ValueError(f"{weights}: {name} is not what was trained; run the same `lowrank train` again")
    digest = best.job["features"] if best else training.features
    basis = best.basis if best else None
    return LowRankModel(model.eval(), training.epoch, training.seed, digest, training.val_mse, basis)


@dataclass(frozen=True)
class _Training:
    """Keys of best_model.json beside the model."""

    epoch: Annotated[int, Field(ge=1)]
    val_mse: float
    seed: Annotated[int, Field(gt=-MAX_SEED, lt=MAX_SEED)]
    features: str | None = None


def _require_shapes(weights: Path, spec: ModelSpec) -> None:
    """ValueError unless the file holds the weights of `spec`, in float32; checked before memory is allocated."""
    try:
        found = {info.name: (info.dtype, info.shape) for info in SafetensorsShard.list_tensors(weights)}
    except (OSError, ValueError) as e:
        raise ValueError(f"{weights}: missing or broken ({str(e).splitlines()[0]}); restore it") from e
    with torch.device("meta"):
        wanted = {name: ("F32", tuple(weight.shape)) for name, weight in LowRankNet(spec).state_dict().items()}
    wrong = next((name for name in sorted(found.keys() | wanted.keys()) if found.get(name) != wanted.get(name)), None)
    if wrong is not None:
        raise ValueError(
            f"{weights.parent}: weights and {BEST_MODEL}.json do not fit ({wrong}: {found.get(wrong, 'missing')} in the"
            f" file, {wanted.get(wrong, 'none')} by {BEST_MODEL}.json); train it again"
        )
