"""What comes of a training beside the adapter: what it knows, and a model for the tracker."""

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from subspacelab.checkpoints import Source, write_reference
from subspacelab.files import read_json, real_path, write_json
from subspacelab.nullspace.knowledge import MEASURES, Knowledge, knowledge_table
from subspacelab.nullspace.places import SERVED_ADAPTER, SERVED_BASE, base_of
from subspacelab.nullspace.train import TrainedAdapter
from subspacelab.params import validate

if TYPE_CHECKING:
    from subspacelab.tracking.protocol import Tracker

SERVED_SUFFIXES = (".json", ".safetensors", ".bin", ".model", ".txt", ".jinja")
"""Of a base: its weights, configs and tokenizer, and nothing else that a person keeps in its folder."""
SMALL = 256 << 20
"""Bytes up to which a base that is no commit of the hub goes along with its adapter; a larger one is pointed to."""


def write_knowledge(path: Path, base: Knowledge | None, found: Mapping[int, Knowledge]) -> None:
    """Writes the base's knowledge and that of one method by seed; null and nothing where it was not measured."""
    seeds = {str(seed): asdict(knowledge) for seed, knowledge in found.items()}
    write_json(path, {"base": asdict(base) if base else None, "seeds": seeds})


def read_knowledge(path: Path) -> tuple[Knowledge | None, dict[int, Knowledge]]:
    """Reads it back; ValueError names the file and what is wrong."""
    content = read_json(path)
    if not isinstance(content, dict) or set(content) != {"base", "seeds"}:
        raise ValueError(f"{path}: must hold the keys 'base' and 'seeds'; train again")
    if content["base"] is None:
        return None, {}
    base = validate(Knowledge, content["base"], where=f"{path}: base")
    return base, {int(s): validate(Knowledge, k, where=f"{path}: seed {s}") for s, k in content["seeds"].items()}


def record_training(
    result: TrainedAdapter, knowledge: Knowledge | None, tracker: "Tracker", *, base: str | None = None
) -> None:
    """Logs a trained adapter's numbers, with the seed as the step, and the adapter as a model that carries its base."""
    from subspacelab.tracking.protocol import ModelFiles, pinned

    meta = result.meta
    metrics = result.metrics | (asdict(knowledge) if knowledge else {})
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


def track_knowledge(method: str, base: Knowledge, found: Mapping[int, Knowledge], tracker: "Tracker") -> None:
    """Records the means over the seeds as headlines, and each seed's numbers with the seed as the step."""
    row = knowledge_table(base, {method: list(found.values())}).iloc[1]
    tracker.log_headline({f"{method}_{name}": float(row[f"{name}_mean"]) for name in MEASURES})
    for seed, knowledge in found.items():
        tracker.log_metrics({f"knowledge/{name}": value for name, value in asdict(knowledge).items()}, seed)
    tracker.log_metrics({f"base/{name}": value for name, value in asdict(base).items()})
