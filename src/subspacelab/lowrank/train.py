"""Trains one network on a feature cache: early stopping, best and last state on disk, continued after a kill."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from subspacelab.devices import choose_device
from subspacelab.distributed import Processes, processes
from subspacelab.files import replace_folder, sha256_file, write_json
from subspacelab.lowrank.allocator import RankAllocator, make_schedule
from subspacelab.lowrank.architectures import (
    AdaLoRA,
    LowRankModel,
    ModelSpec,
    build_model,
    canonical_arch,
    require_rank,
)
from subspacelab.lowrank.batches import batches_of, epoch_order, read_batches
from subspacelab.lowrank.config import AllocatorConfig, TrainLowrankConfig
from subspacelab.lowrank.features import INDEX, META, Features
from subspacelab.lowrank.losses import orthogonality_of_a, size_of_b
from subspacelab.lowrank.splits import split_rows
from subspacelab.lowrank.state import (
    BEST_STATE,
    LAST,
    Progress,
    SavedTraining,
    read_training,
    restore,
    write_model,
    write_training,
)
from subspacelab.lowrank.statistics import feature_statistics
from subspacelab.reports.progress import progress_bar

Log = Callable[[Mapping[str, float], int], None]
HISTORY = "history.json"
PLATEAU = {"factor": 0.5, "patience": 3}


@dataclass(frozen=True)
class TrainingResult:
    """A finished training."""

    folder: Path
    """Holds best_model.safetensors and .json, best_state, last, history.json."""
    progress: Progress
    """Epochs, best validation MSE, history."""

    @property
    def metrics(self) -> dict[str, float]:
        """The training in a few numbers."""
        best = self.progress.history[self.progress.best_epoch - 1]
        return {"best_epoch": self.progress.best_epoch, **{k: v for k, v in best.items() if k.startswith("val_")}}


def train(
    features: Features,
    results_dir: Path,
    *,
    arch: str,
    rank: int,
    seed: int,
    settings: TrainLowrankConfig,
    log: Log = lambda metrics, step: None,
) -> TrainingResult:
    """Trains `arch` at `rank` into `results_dir/<arch>`, or takes up there what the same training has left.

    Validation MSE decides what is best, when the learning rate is halved, and when to stop. `log(metrics, epoch)` gets
    the curves. Raises ValueError for settings that do not fit the features, and when the training diverges.
    """
    arch = canonical_arch(arch)
    require_rank(rank, features.meta.tokens, features.meta.dim)
    folder = results_dir / arch
    job = training_job(features, arch, rank, seed, settings)
    begun = _begun(folder)
    same = begun is not None and begun.job == job
    trainer = Trainer(features, folder, job, settings, log)
    if begun is not None and same:
        trainer.take(begun)
    else:
        trainer.progress.until = settings.epochs
    trainer.run()
    return TrainingResult(folder, trainer.progress)


def resume_training(
    features: Features,
    results_dir: Path,
    *,
    arch: str,
    epochs: int,
    rank: int | None = None,
    source: Path | None = None,
    device: str = "auto",
    compile: bool = True,
    log: Log = lambda metrics, step: None,
) -> TrainingResult:
    """Goes on for `epochs` more from the best model in `results_dir/<arch>`: its optimizer, scheduler and settings.

    With `source`, the folder of a finished training, that one is copied and continued, and stays as it is. A resumed
    training that was cut short is taken up. Raises ValueError when there is nothing to resume, or another rank.
    """
    arch = canonical_arch(arch)
    folder = results_dir / arch
    if source is not None and not (folder / LAST).is_file():
        with replace_folder(folder) as partial:
            shutil.copytree(source, partial, dirs_exist_ok=True)
    begun, best = _begun(folder), _best_to_resume(folder, arch, rank)
    resumed = begun is not None and begun.job["resumed_from"] is not None and begun.job["epochs"] == epochs
    if begun is not None and resumed and (source is not None or not begun.progress.finished):
        trainer = Trainer(features, folder, begun.job, _settings_of(begun.job, device, compile), log)
        trainer.take(begun)
    else:
        job = best.job | {"resumed_from": best.progress.epoch, "epochs": epochs}
        trainer = Trainer(features, folder, job, _settings_of(job, device, compile), log)
        trainer.take(best)
        trainer.progress.until, trainer.progress.finished = best.progress.epoch + epochs, False
    trainer.run()
    return TrainingResult(folder, trainer.progress)


def _begun(folder: Path) -> SavedTraining | None:
    return read_training(folder / LAST) if (folder / LAST).is_file() else None


def _best_to_resume(folder: Path, arch: str, rank: int | None) -> SavedTraining:
    if not (folder / BEST_STATE).is_file():
        raise ValueError(f"{folder}: nothing to resume ({BEST_STATE} is missing); train without --resume first")
    best = read_training(folder / BEST_STATE)
    for key, wanted in {"arch": arch, "rank": rank or best.job["rank"]}.items():
        if best.job[key] != wanted:
            raise ValueError(
                f"{folder}: holds {key} {best.job[key]}, asked for {wanted}; choose another --results-dir or retrain"
            )
    return best


def training_job(features: Features, arch: str, rank: int, seed: int, settings: TrainLowrankConfig) -> dict[str, Any]:
    """What a training is, as JSON; where it runs is left out, and how long it is stands apart."""
    content = json.loads(json.dumps(asdict(settings)))
    epochs = content.pop("epochs")
    for place in ("device", "compile"):
        content.pop(place)
    rows = split_rows(list(features.index["sha256"]), seed)["train"]
    return {
        "arch": arch,
        "rank": rank,
        "seed": seed,
        "epochs": epochs,
        "resumed_from": None,
        # Of the first training: the allocator stays at its final budget when it is continued.
        "allocator_steps": epochs * len(batches_of(rows, settings.batch_size)),
        "settings": content,
        "features": " ".join(sha256_file(features.folder / name) for name in (META, INDEX)),
    }


class Trainer:
    """One training in one process: what the epochs share."""

    def __init__(
        self, features: Features, folder: Path, job: dict[str, Any], settings: TrainLowrankConfig, log: Log
    ) -> None:
        self.features, self.folder, self.job, self.settings, self.log = features, folder, job, settings, log
        self.device = choose_device(self.settings.device)
        self.group = processes(cpu=self.device.type == "cpu")
        self.seed = int(job["seed"])
        self.rows = split_rows(list(features.index["sha256"]), self.seed)
        self.progress = Progress()
        self.model = self._fresh_model().to(self.device)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=self.settings.lr, weight_decay=self.settings.weight_decay, fused=True
        )
        self.scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(self.optimizer, **PLATEAU)  # type: ignore[arg-type]
        self.allocator = self._allocator()
        self.forward = self._wrapped()

    def _fresh_model(self) -> LowRankModel:
        s, meta = self.settings, self.features.meta
        statistics = feature_statistics(self.features, self.rows["train"], s.normalisation, self.device)
        spec = ModelSpec(
            arch=self.job["arch"],
            tokens=meta.tokens,
            dim=meta.dim,
            rank=self.job["rank"],
            dropout=s.dropout,
            shortcut=s.start == "pca",
            refine=s.refine,
            power_steps=s.power_steps,
            normalisation=statistics.normalisation,
        )
        basis = statistics.basis[:, : spec.rank].float() if s.start == "pca" else None
        return build_model(spec, seed=self.seed, basis=basis)

    def _allocator(self) -> RankAllocator | None:
        if not (self.settings.use_rank_allocator and isinstance(self.model.net, AdaLoRA)):
            return None
        total = self.job["allocator_steps"]
        schedule = make_schedule(self.settings.allocator, rank=self.job["rank"], total_steps=total)
        return RankAllocator(schedule, self.model.net.triplet())

    def _wrapped(self) -> Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]:
        """The model as it is called: data-parallel in several processes, compiled on a GPU."""
        model: Any = self.model
        if self.group.count > 1:
            from accelerate import Accelerator

            model = Accelerator(cpu=self.device.type == "cpu").prepare_model(model)
        # QR, which Sketch lives on, does not compile.
        if self.device.type == "cuda" and self.settings.compile and self.job["arch"] != "Sketch":
            model = torch.compile(model)
        return model  # type: ignore[no-any-return]

    def take(self, saved: SavedTraining) -> None:
        """Goes on where a saved training stands."""
        restore(saved, self.model, self.optimizer)
        self.progress = replace(saved.progress, history=list(saved.progress.history))
        self.scheduler.load_state_dict(saved.progress.scheduler)
        if self.allocator is not None and saved.part("allocator"):
            self.allocator.load(saved.part("allocator"))

    def run(self) -> None:
        """Epoch after epoch until the last one or until the validation MSE has stopped improving."""
        p = self.progress
        num_batches = len(batches_of(self.rows["train"], self.settings.batch_size))
        with progress_bar(
            f"train {self.job['arch']}", total=(p.until - p.epoch) * num_batches, unit="steps"
        ) as advance:
            while not p.finished:
                epoch = p.epoch + 1
                means = self.train_epoch(epoch, advance) | self._validate()
                self.scheduler.step(means["val_mse"])
                p.epoch = epoch
                p.history.append({"epoch": epoch, **means})
                self._save(means["val_mse"])
                self.log(means, epoch)

    def train_epoch(self, epoch: int, advance: Callable[[float], None]) -> dict[str, float]:
        # Seeded by the epoch, so that a training continued at its start draws the same dropout.
        torch.manual_seed(self.seed * 1_000_003 + epoch)
        self.model.train()
        batches = batches_of(epoch_order(self.rows["train"], self.seed, epoch), self.settings.batch_size)
        rate = self.optimizer.param_groups[0]["lr"]
        sums: dict[str, Tensor] = {}
        mine = _share_of(batches, self.group)
        for x in read_batches(self.features, mine, self.model.spec.normalisation, self.device):
            loss, parts = self._loss(x)
            self._step(loss, rate)
            for name, value in {"train_loss": loss.detach(), **parts}.items():
                sums[name] = sums.get(name, torch.zeros((), device=self.device)) + value.detach() * len(x)
            advance(1)
        count = sum(len(batch) for batch in mine)
        means = {name: value.item() / count for name, value in sums.items()} | {"learning_rate": rate}
        if isinstance(self.model.net, AdaLoRA):
            means["live_rank"] = self.model.net.current_effective_rank()
        return means

    def _loss(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        s = self.settings
        mixed = self.device.type == "cuda" and self.job["arch"] != "Sketch"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=mixed):
            a, b, approximation = self.forward(x)
        mse = F.mse_loss(approximation.float(), x)
        loss = mse
        if s.lambda_B:
            loss = loss + s.lambda_B * size_of_b(b.float())
        if s.lambda_ortho:
            loss = loss + s.lambda_ortho * orthogonality_of_a(a.float())
        if isinstance(self.model.net, AdaLoRA):
            if s.orth_reg_weight:
                loss = loss + s.orth_reg_weight * self.model.net.orthogonality()
            if s.activation_orth_weight:
                loss = loss + s.activation_orth_weight * orthogonality_of_a(a.float())
        return loss, {"train_mse": mse}

    def _step(self, loss: Tensor, rate: float) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        if not torch.isfinite(norm):
            raise ValueError(
                f"the training of {self.job['arch']} diverged at step {self.progress.steps}: loss {float(loss):g};"
                f" lower lr ({rate:g} here)"
            )
        self.optimizer.step()
        if self.allocator is not None:
            self.allocator.step(self.progress.steps)
        self.progress.steps += 1

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """Mean squared error and cosine of the validation pictures, in float32 without dropout."""
        self.model.eval()
        batches = batches_of(self.rows["validation"], self.settings.batch_size)
        squares = cosines = torch.zeros((), dtype=torch.float64, device=self.device)
        for x in read_batches(self.features, batches, self.model.spec.normalisation, self.device):
            approximation = self.model(x)[2]
            squares = squares + (approximation - x).square().mean(dim=(1, 2)).double().sum()
            cosines = cosines + F.cosine_similarity(approximation.flatten(1), x.flatten(1)).double().sum()
        count = len(self.rows["validation"])
        return {"val_mse": squares.item() / count, "val_cosine": cosines.item() / count}

    def _save(self, val_mse: float) -> None:
        p, better = self.progress, val_mse < self.progress.best_mse
        if better:
            p.best_epoch, p.best_mse = p.epoch, val_mse
        p.scheduler = self.scheduler.state_dict()
        p.finished = p.epoch >= p.until or p.epoch - p.best_epoch >= self.settings.patience
        if self.group.is_main:
            if better:
                self._write(BEST_STATE)
                write_model(self.folder, self.model, epoch=p.epoch, val_mse=val_mse, seed=self.seed)
            write_json(self.folder / HISTORY, p.history)
            self._write(LAST)  # last of all: a kill before it repeats this epoch, to the same bytes
        self.group.wait()

    def _write(self, name: str) -> None:
        allocator = self.allocator.state() if self.allocator else {}
        write_training(self.folder / name, self.job, self.progress, self.model, self.optimizer, allocator)


def _settings_of(job: dict[str, Any], device: str, compile: bool) -> TrainLowrankConfig:
    """The settings that a job was written with, to be trained on `device`."""
    settings = job["settings"] | {"epochs": job["epochs"], "device": device, "compile": compile}
    return TrainLowrankConfig(**settings | {"allocator": AllocatorConfig(**settings["allocator"])})


def _share_of(batches: list[list[int]], group: Processes) -> list[list[int]]:
    """This process's part of every batch; what does not divide is left out, so that all take the same steps."""
    if group.count == 1:
        return batches
    even = [batch[: len(batch) - len(batch) % group.count] for batch in batches]
    return [batch[group.rank :: group.count] for batch in even if batch]
