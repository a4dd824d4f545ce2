"""All trainings of one method, over its rates and seeds: every adapter is trained and evaluated."""

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import fmean

from subspacelab.core.callbacks import Log, Progress, no_log, no_progress
from subspacelab.core.devices import choose_device
from subspacelab.core.files import move_folder, replace_folder
from subspacelab.data.instructions import read_instructions
from subspacelab.nullspace.card import add_measured, measured_knowledge
from subspacelab.nullspace.config import TrainAdapterConfig
from subspacelab.nullspace.inits import method_of
from subspacelab.nullspace.knowledge import Knowledge, measure_knowledge
from subspacelab.nullspace.paths import seed_folders
from subspacelab.nullspace.rates import Training, choose_rate, write_knowledge
from subspacelab.nullspace.training import TrainedAdapter, train_adapter


@dataclass(frozen=True)
class TrainedSeeds:
    """The trainings of one method."""

    method: str
    """Name of the method."""
    base: Knowledge | None
    """Knowledge of the base model; None if it was not measured."""
    trainings: list[Training]
    """Knowledge after each training, at each rate; empty if it was not measured."""
    adapters: dict[int, TrainedAdapter]
    """Seed -> adapter at the chosen rate, in its training's folder until `move`."""

    def save(self, path: Path) -> None:
        """Writes their knowledge as JSON; without base and trainings if it was not measured."""
        write_knowledge(path, self.base, self.trainings)

    def move(self, folder: Path) -> None:
        """Moves the adapters to `folder/seed-<seed>/ft`. Call it last: a killed run expects them where they are."""
        with replace_folder(folder) as partial:
            for seed, adapter in self.adapters.items():
                move_folder(adapter.folder.parent, partial / f"seed-{seed}")


def train_seeds(
    built: Path,
    work_dir: Path,
    *,
    settings: TrainAdapterConfig,
    log: Log = no_log,
    progress: Progress = no_progress,
) -> TrainedSeeds:
    """Trains `built/seed-<seed>`, for each seed, at each rate of its method, and measures the knowledge.

    The adapters at the rate of `choose_rate` are returned; of the other rates, only the knowledge. Trainings are kept
    in `work_dir`, so that a killed run continues. In `log`, the first seed's curves have plain names and the others'
    begin with `seed-<seed>/`; with several rates, all begin with `rate-<rate>/`.
    """
    adapters = seed_folders(built)
    rows = read_instructions(settings.data)
    for name in settings.lr_by_method:
        method_of(name)  # a method that does not exist would be passed over without a word
    rates = sorted({settings.lr_by_method.get(built.name, settings.lr) * factor for factor in settings.rate_factors})
    first = next(iter(adapters))
    results: dict[tuple[float, int], TrainedAdapter] = {}
    for rate, (seed, adapter) in product(rates, adapters.items()):
        prefix = (f"rate-{rate:g}/" if len(rates) > 1 else "") + ("" if seed == first else f"seed-{seed}/")
        results[rate, seed] = train_adapter(
            adapter,
            work_dir / "trainings" / f"{rate:g}" / adapter.name,
            rows=rows,
            settings=replace(settings, lr=rate),
            seed=seed,
            log=_prefixed(log, prefix),
            progress=progress,
        )
    base, found, chosen = None, list[Training](), rates[0]
    if settings.knowledge is not None:
        folders = [result.folder for result in results.values()]
        device = choose_device(settings.device)
        base, known = measure_knowledge(folders, settings.knowledge, seed=first, device=device)
        by_rate = {r: fmean(k.validation for (q, _), k in zip(results, known, strict=True) if q == r) for r in rates}
        problems = read_instructions(settings.knowledge.validation)[: settings.knowledge.limit]
        chosen = choose_rate(by_rate, len(problems))
        found = [Training(seed, r, r == chosen, k) for (r, seed), k in zip(results, known, strict=True)]
        for result, k in zip(results.values(), known, strict=True):
            add_measured(result.folder, measured_knowledge(base, k))
    return TrainedSeeds(built.name, base, found, {seed: results[chosen, seed] for seed in adapters})


def _prefixed(log: Log, prefix: str) -> Log:
    return lambda metrics, step: log({f"{prefix}{name}": value for name, value in metrics.items()}, step)
