"""What comes of a training beside the adapter: what it knows, and a model for the tracker."""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from subspacelab.checkpoints import Source, write_reference
from subspacelab.files import read_json, real_path, write_json
from subspacelab.nullspace.knowledge import Knowledge
from subspacelab.nullspace.places import SERVED_ADAPTER, SERVED_BASE, base_of
from subspacelab.nullspace.rates import Training, chosen_ones, trainings_table
from subspacelab.nullspace.train import TrainedAdapter
from subspacelab.params import validate

if TYPE_CHECKING:
    from subspacelab.tracking.protocol import Tracker

SERVED_SUFFIXES = (".json", ".safetensors", ".bin", ".model", ".txt", ".jinja")
"""Of a base: its weights, configs and tokenizer, and nothing else that a person keeps in its folder."""
SMALL = 256 << 20
"""Bytes up to which a base that is no commit of the hub goes along with its adapter; a larger one is pointed to."""


def write_knowledge(path: Path, base: Knowledge | None, found: Sequence[Training]) -> None:
    """Writes the base's knowledge and every training of one method; null and none where it was not measured."""
    write_json(path, {"base": asdict(base) if base else None, "trainings": [asdict(training) for training in found]})


def read_knowledge(path: Path) -> tuple[Knowledge | None, list[Training]]:
    """Reads it back; ValueError names the file and what is wrong."""
    content = read_json(path)
    if not isinstance(content, dict) or set(content) != {"base", "trainings"}:
        raise ValueError(f"{path}: must hold the keys 'base' and 'trainings'; train again")
    if content["base"] is None:
        return None, []
    base = validate(Knowledge, content["base"], where=f"{path}: base")
    return base, validate(list[Training], content["trainings"], where=f"{path}: trainings")


def record_training(
    result: TrainedAdapter, knowledge: Knowledge | None, tracker: "Tracker", *, base: str | None = None
) -> None:
    """Logs a trained adapter's numbers, with the seed as the step, and the adapter as a model that carries its base."""
    from subspacelab.tracking.protocol import ModelFiles, pinned

    meta = result.meta
    metrics = result.metrics | (_measured(knowledge) if knowledge else {})
    tracker.log_metrics({f"training/{name}": value for name, value in result.metrics.items()}, meta["seed"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        stage_model(folder, result.folder, base_of(meta, base))
        tracker.log_model(
            ModelFiles(
                name=f"nullspace_{meta['method']}_seed_{meta['seed']}",
                folder=folder,
                code=Path(__file__).with_name("served.py"),
                pip_requirements=pinned("torch", "transformers", "peft", "safetensors"),
                params={"method": meta["method"], "rank": meta["rank"], "seed": meta["seed"], "base": meta["base"]},
                metrics=metrics,
                step=meta["trained"]["steps"],
            )
        )


def stage_model(folder: Path, adapter: Path, base: Source) -> None:
    """Lays out what `served.py` loads: the adapter, and the base's files, or a pointer to its commit or place."""
    shutil.copytree(adapter, folder / SERVED_ADAPTER)
    files = [file for file in base.folder.iterdir() if file.suffix in SERVED_SUFFIXES and file.is_file()]
    if base.revision is None and sum(file.stat().st_size for file in files) <= SMALL:
        (folder / SERVED_BASE).mkdir()
        for file in files:
            shutil.copyfile(file, folder / SERVED_BASE / file.name)
    elif base.revision is None:
        write_reference(folder / SERVED_BASE, replace(base, reference=str(real_path(base.folder))))
    else:
        write_reference(folder / SERVED_BASE, base)


def track_knowledge(method: str, base: Knowledge, found: Sequence[Training], tracker: "Tracker") -> None:
    """Records the means over the seeds at the chosen rate as headlines, each seed's numbers with the seed as the step,
    and a table of all trainings.
    """
    chosen = [(training.seed, _measured(training.knowledge)) for training in chosen_ones(found)]
    tracker.log_headline({f"{method}_{name}": fmean(k[name] for _, k in chosen) for name in chosen[0][1]})
    for seed, knowledge in chosen:
        tracker.log_metrics({f"knowledge/{name}": value for name, value in knowledge.items()}, seed)
    tracker.log_metrics({f"base/{name}": value for name, value in _measured(base).items()})
    tracker.log_table(trainings_table({method: found}), "trainings")


def _measured(knowledge: Knowledge) -> dict[str, float]:
    return {name: value for name, value in asdict(knowledge).items() if value is not None}
