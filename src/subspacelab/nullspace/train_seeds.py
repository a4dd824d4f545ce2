"""One method over its seeds: every adapter that was built is trained, examined and recorded."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from subspacelab.data.instructions import read_instructions
from subspacelab.devices import choose_device
from subspacelab.files import move_folder
from subspacelab.nullspace.config import TrainAdapterConfig
from subspacelab.nullspace.knowledge import Knowledge, measure_knowledge
from subspacelab.nullspace.methods import method_of
from subspacelab.nullspace.outcome import record_training, track_knowledge, write_knowledge
from subspacelab.nullspace.places import seed_folders
from subspacelab.nullspace.train import Log, TrainedAdapter, train_adapter

if TYPE_CHECKING:
    from subspacelab.tracking.protocol import Tracker


def train_seeds(
    built: Path, work_dir: Path, trained: Path, knowledge: Path, *, settings: TrainAdapterConfig, tracker: "Tracker"
) -> dict[int, Knowledge]:
    """Trains `built/seed-<seed>` for each seed there is, to `trained/seed-<seed>/ft`, and writes what they know.

    Trainings lie in `work_dir` until all are done, so that a killed run goes on where it was. The first seed's curves
    have plain names, the others' begin with `seed-<seed>/`. `knowledge` is written in any case: without
    `settings.knowledge` it holds no base and no seed.
    """
    adapters = seed_folders(built)
    rows = read_instructions(settings.data)
    for name in settings.lr_by_method:
        method_of(name)  # a method that does not exist would be passed over without a word
    settings = replace(settings, lr=settings.lr_by_method.get(built.name, settings.lr))
    results: dict[int, TrainedAdapter] = {}
    for seed, adapter in adapters.items():
        log = _prefixed(tracker.log_metrics, "" if not results else f"seed-{seed}/")
        place = work_dir / trained.name / adapter.name
        results[seed] = train_adapter(adapter, place, rows=rows, settings=settings, seed=seed, log=log)
    base, found = None, dict[int, Knowledge]()
    if settings.knowledge is not None:
        folders = [result.folder for result in results.values()]
        device = choose_device(settings.device)
        first = next(iter(results))
        base, known = measure_knowledge(folders, settings.knowledge, seed=first, device=device)
        found = dict(zip(results, known, strict=True))
        track_knowledge(built.name, base, found, tracker)
    write_knowledge(knowledge, base, found)
    for seed, result in results.items():
        record_training(result, found.get(seed), tracker)
    move_folder(work_dir / trained.name, trained)
    return found


def _prefixed(log: Log, prefix: str) -> Log:
    return lambda metrics, step: log({f"{prefix}{name}": value for name, value in metrics.items()}, step)
