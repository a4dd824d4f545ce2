"""Trains one network on a feature cache: early stopping, best and last state on disk; a killed training continues."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from subspacelab.core.callbacks import Log, Progress, no_log, no_progress
from subspacelab.core.devices import Processes, choose_device, processes
from subspacelab.core.files import remove_partials, replace_folder
from subspacelab.core.ownership import (
    require_apart,
    require_no_links,
    require_own_entries,
    require_same_job,
    sole_writer,
)
from subspacelab.lowrank.architectures import canonical_arch, require_rank
from subspacelab.lowrank.config import AllocatorConfig, TrainLowrankConfig
from subspacelab.lowrank.features import Features
from subspacelab.lowrank.preparation import batches_of, read_batches
from subspacelab.lowrank.state import (
    BEST_STATE,
    LAST,
    MAX_SEED,
    LowRankModel,
    SavedTraining,
    TrainingProgress,
    load_model,
    read_training,
)
from subspacelab.lowrank.trainer import Trainer, num_steps


@dataclass(frozen=True)
class TrainingResult:
    """A finished training."""

    folder: Path
    """Holds best_model.safetensors and .json, best_state, last, history.json."""
    progress: TrainingProgress
    """Epochs, best validation MSE, history."""
    rank: str
    """Rank of A @ B and the largest possible one: "rank 128 of 256"."""

    @property
    def metrics(self) -> dict[str, float]:
        """The main numbers of the training."""
        best = self.progress.history[self.progress.best_epoch - 1]
        return {"best_epoch": self.progress.best_epoch, **{k: v for k, v in best.items() if k.startswith("val_")}}


@dataclass(frozen=True)
class ValidationErrors:
    """Errors of the best model on the validation pictures."""

    tokens: Float[Tensor, "side side"]
    """||x - x_hat|| / ||x|| of each token, mean over the pictures, on the picture's plane."""
    components: Float[Tensor, " rank"]
    """||a_i|| ||b_i|| of each column of A and row of B, mean over the pictures."""


BATCH = 16


@torch.no_grad()
def validation_errors(result: TrainingResult, features: Features) -> ValidationErrors:
    """Measures the best model on the validation pictures."""
    trained = load_model(result.folder)
    rows = features.split(trained.seed)["validation"]
    spec = trained.network.spec
    errors, norms = torch.zeros(spec.tokens), torch.zeros(spec.rank)
    for x in read_batches(features, batches_of(rows, BATCH), spec.normalisation, torch.device("cpu")):
        a, b, approximation = trained.network(x)
        errors += ((approximation - x).norm(dim=2) / x.norm(dim=2)).sum(0)
        norms += (a.norm(dim=1) * b.norm(dim=2)).sum(0)
    side = features.meta.side
    return ValidationErrors((errors / len(rows)).reshape(side, side), norms / len(rows))


def train_into(
    features: Features,
    results_dir: Path,
    *,
    arch: str,
    rank: int,
    seed: int,
    settings: TrainLowrankConfig,
    log: Log = no_log,
    progress: Progress = no_progress,
) -> TrainingResult:
    """Trains `arch` at `rank` into `results_dir/<arch>`, or takes up there what the same training has left.

    Validation MSE decides what is best, when the learning rate is halved, and when to stop. `log(metrics, epoch)` gets
    the curves. Raises ValueError for settings that do not fit the features, when the training diverges, and, before
    anything changes, for a folder that holds another training or anything else.
    """
    arch = canonical_arch(arch)
    require_rank(rank, features.meta.tokens, features.meta.dim)
    if not -MAX_SEED < seed < MAX_SEED:
        raise ValueError(f"seed: {seed} is not between -2^40 and 2^40")
    folder = results_dir / arch
    with _sole_training(folder, features, settings.device) as group:
        job = training_job(features, arch, rank, seed, settings, group.count)
        begun = _begun(folder)
        if begun is None:
            require_own_entries(folder, (), "a training that can be continued")
        else:
            _require_features(folder, begun, features)
            if begun.job["resumed_from"] is not None:
                raise ValueError(
                    f"{folder}: resumed since it was trained; go on with --resume, or choose another --results-dir"
                )
            require_same_job(folder, _flat(begun.job), _flat(job))
        trainer = Trainer(features, folder, job, settings, log, begun)
        if begun is None:
            trainer.progress.until = settings.epochs
            trainer.save_start()  # from now on the folder is known to be this training's
        trainer.run(progress)
    return TrainingResult(folder, trainer.progress, features.meta.describe_rank(trainer.job["rank"]))


def train(
    features: Features,
    *,
    arch: str = "ResMLP",
    rank: int = 128,
    seed: int = 42,
    settings: TrainLowrankConfig | None = None,
    results_dir: Path | str | None = None,
    log: Log = no_log,
    progress: Progress = no_progress,
) -> LowRankModel:
    """Trains one network to factorise the training pictures' features and returns the best epoch's, by validation MSE.

    `arch`: ResMLP, MLP, AdaLoRA or Sketch. `settings`: `TrainLowrankConfig(epochs=..., lr=...)`. `log(metrics, epoch)`
    gets the curves. With `results_dir` the training is kept in `results_dir/<arch>`, and one that was cut short goes
    on there; without, it leaves nothing behind.

    Raises SettingError for what the settings do not allow, ValueError for an unknown architecture, a rank that the
    features do not have, and a training that diverges.

        net = train(features, arch="Sketch", rank=128)
        a, b, approximation = net(features[0])
    """
    with TemporaryDirectory(prefix="subspacelab-") as temporary:
        result = train_into(
            features,
            Path(temporary if results_dir is None else results_dir),
            arch=arch,
            rank=rank,
            seed=seed,
            settings=settings or TrainLowrankConfig(),
            log=log,
            progress=progress,
        )
        return load_model(result.folder)


@contextmanager
def _sole_training(folder: Path, features: Features, device: str) -> Iterator[Processes]:
    """Keeps other commands off `folder`, and removes there what a killed one has left; for features that are whole."""
    require_apart(folder, [features.folder])
    require_no_links(folder)
    features.require_whole()
    group = processes(cpu=choose_device(device).type == "cpu")
    if not group.is_main:
        yield group
        return
    with sole_writer(folder):
        if (folder / LAST).is_file():
            remove_partials(folder)
        yield group


def _flat(job: dict[str, Any]) -> dict[str, Any]:
    """A job's settings under the names of their flags; features have a message of their own."""
    settings = dict(job["settings"])
    allocator = {f"allocator_{key}": value for key, value in settings.pop("allocator").items()}
    derived = ("settings", "features", "allocator_steps")
    return {key: value for key, value in job.items() if key not in derived} | settings | allocator


def resume_training(
    features: Features,
    results_dir: Path,
    *,
    arch: str,
    epochs: int,
    asked: Mapping[str, Any] | None = None,
    source: Path | None = None,
    device: str = "auto",
    compile: bool = True,
    log: Log = no_log,
    progress: Progress = no_progress,
) -> TrainingResult:
    """Goes on for `epochs` more from the best model in `results_dir/<arch>`: its optimizer, scheduler and settings.

    With `source`, the folder of a finished training, that one is copied and continued, and stays as it is. A resumed
    training that was cut short is taken up. Raises ValueError when there is nothing to resume, and for a setting in
    `asked` (by the name of its flag) that is not the one it was trained with.
    """
    arch = canonical_arch(arch)
    folder = results_dir / arch
    with _sole_training(folder, features, device) as group:
        if source is not None and group.is_main and not (folder / LAST).is_file():
            require_apart(folder, [source])
            require_own_entries(folder, (), "a training that can be continued")
            with replace_folder(folder) as partial:
                shutil.copytree(source, partial, dirs_exist_ok=True)
        group.wait()
        begun, best = _begun(folder), _best_to_resume(folder, arch, asked or {})
        _require_features(folder, best, features)
        resumed = begun is not None and begun.job["resumed_from"] is not None and begun.job["epochs"] == epochs
        if begun is not None and resumed and (source is not None or not begun.progress.finished):
            trainer = Trainer(features, folder, begun.job, _settings_of(begun.job, device, compile), log, begun)
        else:
            job = best.job | {"resumed_from": best.progress.epoch, "epochs": epochs}
            trainer = Trainer(features, folder, job, _settings_of(job, device, compile), log, best)
            trainer.progress.until, trainer.progress.finished = best.progress.epoch + epochs, False
            trainer.save_start()
        trainer.run(progress)
    return TrainingResult(folder, trainer.progress, features.meta.describe_rank(trainer.job["rank"]))


def _require_features(folder: Path, saved: SavedTraining, features: Features) -> None:
    if saved.job["features"] != features.digest():
        raise ValueError(
            f"{folder}: trained on other features than those in {features.folder}; choose another --results-dir to "
            "train on these anew"
        )


def _begun(folder: Path) -> SavedTraining | None:
    return read_training(folder / LAST) if (folder / LAST).is_file() else None


def _best_to_resume(folder: Path, arch: str, asked: Mapping[str, Any]) -> SavedTraining:
    if not (folder / BEST_STATE).is_file():
        raise ValueError(f"{folder}: nothing to resume ({BEST_STATE} is missing); train without --resume first")
    best = read_training(folder / BEST_STATE)
    found = _flat(best.job)
    found.pop("epochs")  # these are added
    for key, wanted in {**asked, "arch": arch}.items():
        if key in found and found[key] != wanted:
            now = f" ({best.snapshot.record['groups'][0]['lr']:g} by now)" if key == "lr" else ""
            raise ValueError(
                f"{folder}: was trained with {key}={found[key]!r}{now}, asked for {key}={wanted!r}; a resumed training "
                f"keeps its settings: leave --{key.replace('_', '-')} out, or train anew in another --results-dir"
            )
    return best


def training_job(
    features: Features, arch: str, rank: int, seed: int, settings: TrainLowrankConfig, num_processes: int = 1
) -> dict[str, Any]:
    """Identity of a training as JSON, without its device; its length is stored separately."""
    content = json.loads(json.dumps(asdict(settings)))
    epochs = content.pop("epochs")
    for place in ("device", "compile"):
        content.pop(place)
    rows = features.split(seed)["train"]
    return {
        "arch": arch,
        "rank": rank,
        "seed": seed,
        "epochs": epochs,
        "resumed_from": None,
        # Of the first training: the allocator stays at its final budget when it is continued.
        "allocator_steps": epochs * num_steps(len(rows), settings.batch_size, num_processes),
        "settings": content,
        "features": features.digest(),
    }


def _settings_of(job: dict[str, Any], device: str, compile: bool) -> TrainLowrankConfig:
    """The settings of a job, for a training on `device`."""
    settings = job["settings"] | {"epochs": job["epochs"], "device": device, "compile": compile}
    return TrainLowrankConfig(**settings | {"allocator": AllocatorConfig(**settings["allocator"])})
