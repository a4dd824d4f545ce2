"""One training in one process: epochs, validation, and the files written after each."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from subspacelab.core.callbacks import Advance, Log, Progress, no_progress
from subspacelab.core.devices import Processes, choose_device, compiled_or_eager, float64_place, processes
from subspacelab.core.files import write_json
from subspacelab.lowrank.architectures import AdaLoRA, LowRankNet, ModelSpec, build_model
from subspacelab.lowrank.architectures.adalora import RankAllocator, make_schedule
from subspacelab.lowrank.config import TrainLowrankConfig
from subspacelab.lowrank.features import Features
from subspacelab.lowrank.metrics import orthogonality_of_a, size_of_b
from subspacelab.lowrank.preparation import BatchReader, batches_of, epoch_order, feature_statistics
from subspacelab.lowrank.state import (
    BEST_STATE,
    LAST,
    SavedTraining,
    TrainingProgress,
    read_training,
    write_model,
    write_training,
)
from subspacelab.training.fit import diverged, take_steps

HISTORY = "history.json"
PLATEAU = {"factor": 0.5, "patience": 3}


class Trainer:
    """One training in one process: the state shared by its epochs."""

    def __init__(
        self,
        features: Features,
        folder: Path,
        job: dict[str, Any],
        settings: TrainLowrankConfig,
        log: Log,
        saved: SavedTraining | None = None,
    ) -> None:
        """Starts a training, or continues from `saved`."""
        self.features, self.folder, self.job, self.settings, self.log = features, folder, job, settings, log
        self.device = choose_device(self.settings.device)
        self.group = processes(cpu=self.device.type == "cpu")
        self.place = float64_place(self.device)
        self.seed, self.name = int(job["seed"]), f"the training of {job['arch']}"
        self.rows = features.split(self.seed)
        require_even_shares(settings.batch_size, len(self.rows["train"]), self.group.count)
        self.progress = TrainingProgress()
        self.basis: Tensor | None = None
        model = build_model(saved.spec, seed=self.seed) if saved else self._fresh_model()
        self.model = model.to(self.device)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=self.settings.lr, weight_decay=self.settings.weight_decay, fused=True
        )
        self.scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(self.optimizer, **PLATEAU)  # type: ignore[arg-type]
        self.allocator = self._allocator()
        if saved:
            self._take(saved)
        self.forward = self._wrapped()
        rows = [*self.rows["train"], *self.rows["validation"]]
        self.reader = BatchReader(features, rows, self.model.spec.normalisation, self.device)

    def _fresh_model(self) -> LowRankNet:
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
        self.basis = statistics.basis[:, : meta.full_rank]
        basis = self.basis[:, : spec.rank].float() if s.start == "pca" else None
        return build_model(spec, seed=self.seed, basis=basis)

    def _allocator(self) -> RankAllocator | None:
        if not (self.settings.use_rank_allocator and isinstance(self.model.net, AdaLoRA)):
            return None
        total = self.job["allocator_steps"]
        schedule = make_schedule(self.settings.allocator, rank=self.job["rank"], total_steps=total)
        return RankAllocator(schedule, self.model.net.triplet())

    def _wrapped(self) -> "Factorise":
        """The model as it is called: data-parallel in several processes, compiled for batches of one size on a GPU."""
        model: nn.Module = self.model
        if self.group.count > 1:  # not by accelerate, whose own configuration could change precision and more
            model = nn.parallel.DistributedDataParallel(model)
        # QR, which Sketch lives on, does not compile.
        if self.device.type == "cuda" and self.settings.compile and self.job["arch"] != "Sketch":
            size = self.settings.batch_size // self.group.count
            return filled_up(compiled_or_eager(model, self.device), size)
        return model

    def _take(self, saved: SavedTraining) -> None:
        saved.snapshot.restore(self.model, self.optimizer)
        self.progress = replace(saved.progress, history=list(saved.progress.history))
        self.scheduler.load_state_dict(saved.progress.scheduler)
        self.basis = saved.basis
        if self.allocator is not None and (scores := saved.snapshot.part("allocator")):
            self.allocator.load(scores)

    def run(self, progress: Progress = no_progress) -> None:
        """Epoch after epoch until the last one or until the validation MSE has stopped improving."""
        p = self.progress
        if self.group.is_main:
            self._mend()
        num_batches = num_steps(len(self.rows["train"]), self.settings.batch_size, self.group.count)
        with progress(f"train {self.job['arch']}", (p.until - p.epoch) * num_batches, "steps") as advance:
            while not p.finished:
                epoch = p.epoch + 1
                means = self.train_epoch(epoch, advance) | self._validate()
                if not math.isfinite(means["val_mse"]):
                    how = f"validation MSE {means['val_mse']:g}"
                    raise diverged(self.name, p.steps, how, means["learning_rate"])
                self.scheduler.step(means["val_mse"])
                p.epoch = epoch
                p.history.append({"epoch": epoch, **means})
                self._save(means["val_mse"])
                self.log(means, epoch)

    def train_epoch(self, epoch: int, advance: Advance) -> dict[str, float]:
        """One pass over the training pictures; the means of the loss and its parts. `advance(1)` after each step."""
        # Seeded by the epoch, so that a training continued at its start draws the same dropout.
        torch.manual_seed(self.seed * 1_000_003 + epoch)
        self.model.train()
        batches = batches_of(epoch_order(self.rows["train"], self.seed, epoch), self.settings.batch_size)
        mine = _share_of(batches, self.group)
        inputs = self.reader.read(mine)
        rate, first = self.optimizer.param_groups[0]["lr"], self.progress.steps
        steps = take_steps(
            self.optimizer,
            lambda _: self._loss(next(inputs)),
            range(first, first + len(mine)),
            learning_rate=lambda _: rate,
            clip=self.settings.clip,
            name=self.name,
        )
        sums: dict[str, Tensor] = {}
        for step, batch in zip(steps, mine, strict=True):
            if self.allocator is not None:
                self.allocator.step(self.progress.steps)
            self.progress.steps = step.done
            for name, value in {"train_loss": step.loss, **step.metrics}.items():
                sums[name] = sums.get(name, torch.zeros((), device=self.device)) + value * len(batch)
            advance(1)
        count = sum(len(batch) for batch in mine)
        if self.group.count > 1:  # shares are of one size, so the mean over processes is that over pictures
            for value in sums.values():
                torch.distributed.all_reduce(value)
                value /= self.group.count
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

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """Mean squared error and cosine of the validation pictures, in float32 without dropout.

        The main process's in all of them: they decide on the learning rate and the end, and GPUs may differ in the
        last bits.
        """
        self.model.eval()
        batches = batches_of(self.rows["validation"], self.settings.batch_size)
        squares = cosines = torch.zeros((), dtype=torch.float64, device=self.place)
        for x in self.reader.read(batches):
            approximation = self.model(x)[2]
            square = (approximation - x).square().mean(dim=(1, 2))
            cosine = F.cosine_similarity(approximation.flatten(1), x.flatten(1))
            squares = squares + square.to(self.place).double().sum()
            cosines = cosines + cosine.to(self.place).double().sum()
        count = len(self.rows["validation"])
        return self.group.from_main({"val_mse": squares.item() / count, "val_cosine": cosines.item() / count})

    def _save(self, val_mse: float) -> None:
        p = self.progress
        # With the allocator only what has come down to its final budget may be the best.
        settled = self.allocator is None or self.allocator.schedule.is_final(p.steps)
        better = settled and val_mse < p.best_mse
        if better:
            p.best_epoch, p.best_mse = p.epoch, val_mse
        p.scheduler = self.scheduler.state_dict()
        p.finished = p.epoch >= p.until or (settled and p.epoch - p.best_epoch >= self.settings.patience)
        if self.group.is_main:
            if better:
                self._write(BEST_STATE)
                write_model(self.folder, self.model, epoch=p.epoch, val_mse=val_mse, seed=self.seed)
            write_json(self.folder / HISTORY, p.history)
            self._write(LAST)  # last of all: a kill before it repeats this epoch, to the same bytes
        self.group.wait()

    def _mend(self) -> None:
        """What an earlier run has left, from its states: it may have been damaged since, and no epoch may be better."""
        if (self.folder / BEST_STATE).is_file():
            best = read_training(self.folder / BEST_STATE)
            model = build_model(best.spec, seed=self.seed)
            model.load_state_dict(best.snapshot.part("model"))
            write_model(self.folder, model, epoch=best.progress.epoch, val_mse=best.progress.best_mse, seed=self.seed)
        if self.progress.finished:
            write_json(self.folder / HISTORY, self.progress.history)

    def save_start(self) -> None:
        """Makes a resume what is taken up from now on: a kill in its first epoch must not begin it elsewhere."""
        if self.group.is_main:
            self._mend()  # before the first change: it may be refused
            self._write(LAST)
        self.group.wait()

    def _write(self, name: str) -> None:
        allocator = self.allocator.state() if self.allocator else {}
        write_training(self.folder / name, self.job, self.progress, self.model, self.optimizer, allocator, self.basis)


def require_even_shares(batch_size: int, num_pictures: int, num_processes: int) -> None:
    """ValueError, with the numbers, unless every process has the same part of a batch, and one at all."""
    if num_processes > 1 and (batch_size % num_processes or num_pictures < num_processes):
        raise ValueError(
            f"batch_size: {batch_size} pictures of {num_pictures} for training do not divide by {num_processes}"
            f" processes; choose a multiple of {num_processes}, or fewer processes"
        )


def num_steps(num_pictures: int, batch_size: int, num_processes: int) -> int:
    """Steps of an epoch: one per batch, except a last one that is smaller than the number of processes."""
    whole, rest = divmod(num_pictures, batch_size)
    return whole + (rest >= num_processes if rest else 0)


Factorise = Callable[[Tensor], tuple[Tensor, ...]]


def filled_up(model: Factorise, size: int) -> Factorise:
    """The model, called with batches of one size only: a smaller one is filled up, and what comes of that is left out.

    A compiled model would be compiled once more for another size. Pictures do not see each other, so nothing changes.
    """

    def call(x: Tensor) -> tuple[Tensor, ...]:
        if len(x) == size:
            return model(x)
        filled = torch.cat([x, x[:1].expand(size - len(x), *x.shape[1:])])
        return tuple(found[: len(x)] for found in model(filled))

    return call


def _share_of(batches: list[list[int]], group: Processes) -> list[list[int]]:
    """This process's part of every batch; of the last, smaller one, what does not divide is left out."""
    if group.count == 1:
        return batches
    even = [batch[: len(batch) - len(batch) % group.count] for batch in batches]
    return [batch[group.rank :: group.count] for batch in even if batch]
