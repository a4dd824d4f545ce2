"""Tracker output of the commands of nullspace."""

import math
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import pandas as pd

from subspacelab.checkpoints import Source, write_reference
from subspacelab.core.files import real_path
from subspacelab.models.lora_folder import META, base_of
from subspacelab.nullspace.comparison import HEADLINE, Comparison, failures
from subspacelab.nullspace.display import CURVES, kind_and_block
from subspacelab.nullspace.knowledge import MEASURES as KNOWLEDGE
from subspacelab.nullspace.knowledge import Knowledge
from subspacelab.nullspace.paths import SERVED_ADAPTER, SERVED_BASE
from subspacelab.nullspace.rates import Training, chosen_ones, trainings_table
from subspacelab.nullspace.results import THRESHOLDS, Verification
from subspacelab.nullspace.starts import MEASURES

if TYPE_CHECKING:
    from subspacelab.nullspace.building import Built
    from subspacelab.nullspace.train_seeds import TrainedSeeds
    from subspacelab.nullspace.training import TrainedAdapter
    from subspacelab.tracking.protocol import Tracker


def track_built(built: "Built", tracker: "Tracker", *, seed: int | None = None) -> None:
    """Records each measure as a curve over blocks per kind of layer, the means, and a table of the layers.

    `seed` precedes the names of a second adapter in one run.
    """
    prefix = "" if seed is None else f"seed-{seed}/"
    for layer in built.layers:
        row = layer.as_json()
        points = {f"{prefix}{name}/{layer.kind}": row[name] for name in MEASURES if row.get(name) is not None}
        if points:
            tracker.log_metrics(points, layer.index)
    means = built.meta["summary"] | {"start_difference": built.meta["start_difference"]}
    tracker.log_metrics({f"{prefix}mean/{name}": value for name, value in means.items()})
    tracker.log_table(pd.DataFrame([layer.as_json() for layer in built.layers]), f"{prefix}layers".replace("/", "_"))
    tracker.log_artifact(built.folder / META, f"{prefix}adapter")


def track_verification(found: Verification, state: str, tracker: "Tracker") -> None:
    """Records each ratio as a curve over blocks per kind of layer, and the averages.

    `state` is init or trained. `compare_stats` selects the headline numbers.
    """
    for stats in found.stats:
        kind, block = kind_and_block(stats.layer)
        tracker.log_metrics({f"{name}/{kind}": getattr(stats, name) for name in CURVES}, block)
    s = found.summary
    tracker.log_metrics({f"mean/{name}": getattr(s, name) for name in THRESHOLDS})
    if state == "trained":
        tracker.log_metrics({f"{s.method}_BX_ratio": s.BX_ratio})
    tracker.set_tags({f"verdict.{v.metric}": f"{v.grade}: {v.text}" for v in found.verdicts})


def track_knowledge_table(table: pd.DataFrame, tracker: "Tracker") -> None:
    """Records the table and, by method, the mean of each measure at the chosen rate."""
    tracker.log_table(table, "knowledge")
    for row in table[table["chosen"].astype(bool)].to_dict("records"):
        means = {f"{m}/{row['method']}": row[f"{m}_mean"] for m in KNOWLEDGE}
        tracker.log_metrics({name: mean for name, mean in means.items() if not math.isnan(mean)})


def track_study(found: Comparison, pictures: Sequence[Path], tracker: "Tracker") -> None:
    """Records the results of `compare_methods`: the headline numbers, both tables, and the pictures."""
    tracker.log_headline(found.headline)
    track_comparison(found.stats, pictures, tracker)
    track_knowledge_table(found.knowledge, tracker)


def track_comparison(table: pd.DataFrame, pictures: Sequence[Path], tracker: "Tracker") -> None:
    """Records the table, the number of failures by method, and the pictures."""
    tracker.log_table(table, "stats")
    for method, rows in table.groupby("method", sort=False):
        tracker.log_metrics({f"failed_expectations/{method}": float(len(failures(rows)))})
    for picture in pictures:
        tracker.log_artifact(picture, "pictures")


SERVED_SUFFIXES = (".json", ".safetensors", ".bin", ".model", ".txt", ".jinja")
"""Suffixes of a base's weights, configs and tokenizer; other files in its folder are left out."""
SMALL = 256 << 20
"""Largest size in bytes of a local base that is stored with its adapter; a larger one is only referred to."""


def record_training(
    result: "TrainedAdapter", knowledge: Knowledge | None, tracker: "Tracker", *, base: str | None = None
) -> None:
    """Logs a trained adapter's numbers, with the seed as the step, and the adapter with its base as a model."""
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
                code=Path(__file__).with_name("mlflow_model.py"),
                pip_requirements=pinned("torch", "transformers", "peft", "safetensors"),
                params={"method": meta["method"], "rank": meta["rank"], "seed": meta["seed"], "base": meta["base"]},
                metrics=metrics,
                step=meta["trained"]["steps"],
                registered="nullspace",
                headline="geometric_mean",
            )
        )


def record_seeds(result: "TrainedSeeds", tracker: "Tracker") -> None:
    """Logs the knowledge of all trainings of a method, and each adapter at the chosen rate as a model."""
    if result.base is not None:
        track_knowledge(result.method, result.base, result.trainings, tracker)
    known = {training.seed: training.knowledge for training in chosen_ones(result.trainings)}
    for seed, adapter in result.adapters.items():
        record_training(adapter, known.get(seed), tracker)


def stage_model(folder: Path, adapter: Path, base: Source) -> None:
    """Lays out the files that `mlflow_model.py` loads: the adapter, and the base or a pointer to its commit or path."""
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
    """Records recall and task over the seeds at the chosen rate, and a table of all trainings.

    Each seed's numbers are recorded with the seed as the step. `compare_stats` selects the headline numbers.
    """
    chosen = [(training.seed, _measured(training.knowledge)) for training in chosen_ones(found)]
    tracker.log_metrics({f"{method}_{name}": fmean(k[name] for _, k in chosen) for name in HEADLINE})
    for seed, knowledge in chosen:
        tracker.log_metrics({f"knowledge/{name}": value for name, value in knowledge.items()}, seed)
    tracker.log_metrics({f"base/{name}": value for name, value in _measured(base).items()})
    tracker.log_table(trainings_table({method: found}), "trainings")


def _measured(knowledge: Knowledge) -> dict[str, float]:
    return {name: value for name, value in asdict(knowledge).items() if value is not None}
