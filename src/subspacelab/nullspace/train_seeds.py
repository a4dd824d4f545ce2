"""One method over its rates and seeds: every adapter that was built is trained, examined and recorded."""

from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from subspacelab.core.callbacks import Log
from subspacelab.core.devices import choose_device
from subspacelab.core.files import move_folder
from subspacelab.data.instructions import read_instructions
from subspacelab.nullspace.config import TrainAdapterConfig
from subspacelab.nullspace.inits import method_of
from subspacelab.nullspace.knowledge import measure_knowledge
from subspacelab.nullspace.logging import record_training, track_knowledge
from subspacelab.nullspace.paths import seed_folders
from subspacelab.nullspace.rates import Training, choose_rate, write_knowledge
from subspacelab.nullspace.train import TrainedAdapter, train_adapter

if TYPE_CHECKING:
    from subspacelab.tracking.protocol import Tracker


def train_seeds(
    built: Path, work_dir: Path, trained: Path, knowledge: Path, *, settings: TrainAdapterConfig, tracker: "Tracker"
) -> list[Training]:
    """Trains `built/seed-<seed>` for each seed there is at each of its method's rates, and writes what they know.

    The adapters of the rate that `choose_rate` takes go to `trained/seed-<seed>/ft`; of the others what they know is
    kept. Trainings lie in `work_dir` until all are done and recorded, so that a killed run goes on where it was. The
    first seed's curves have plain names, the others' begin with `seed-<seed>/`; of several rates all begin with
    `rate-<rate>/`.
    `knowledge` is written in any case: without `settings.knowledge` it holds no base and no training.
    """
    adapters = seed_folders(built)
    rows = read_instructions(settings.data)
    for name in settings.lr_by_method:
        method_of(name)  # a method that does not exist would be passed over without a word
    rates = settings.rates(built.name)
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
            log=_prefixed(tracker.log_metrics, prefix),
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
        track_knowledge(built.name, base, found, tracker)
    write_knowledge(knowledge, base, found)
    knows = {(t.rate, t.seed): t.knowledge for t in found}
    for seed in adapters:
        record_training(results[chosen, seed], knows.get((chosen, seed)), tracker)
    for seed, adapter in adapters.items():
        move_folder(results[chosen, seed].folder.parent, work_dir / trained.name / adapter.name)
    move_folder(work_dir / trained.name, trained)
    return found


def _prefixed(log: Log, prefix: str) -> Log:
    return lambda metrics, step: log({f"{prefix}{name}": value for name, value in metrics.items()}, step)
