"""Tracker output of the commands of lowrank, and the log folder of a training that is run by hand."""

import errno
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import datetime
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subspacelab.core.callbacks import Log
from subspacelab.core.devices import is_main_process
from subspacelab.core.files import write_json
from subspacelab.lowrank.comparison import Comparison
from subspacelab.lowrank.features import Features
from subspacelab.lowrank.state import BEST_MODEL
from subspacelab.lowrank.training import TrainingResult
from subspacelab.lowrank.visualization import Views

if TYPE_CHECKING:
    from subspacelab.tracking.protocol import Tracker


def track_comparison(comparison: Comparison, folder: Path, pictures: Sequence[Path], tracker: "Tracker") -> None:
    """Records mean and deviation of every measure, the headline, the tables and the pictures.

    Also the cost of a picture, in operations and in milliseconds of this run, and what training changed. `folder` is
    where the comparison was saved.
    """
    metrics = comparison.metrics
    for name, measures in metrics["methods"].items():
        key = name.replace(" ", "_")
        tracker.log_metrics({f"{measure}/{key}": value["mean"] for measure, value in measures.items()})
        tracker.log_metrics({f"{measure}_std/{key}": value["std"] for measure, value in measures.items()})
        cost = {"flops": metrics["flops_per_picture"][name], "milliseconds": comparison.milliseconds[name]}
        training = metrics["training"].get(name, {}) | metrics["task"].get(name, {})
        tracker.log_metrics({f"{measure}/{key}": value for measure, value in (cost | training).items()})
    tracker.log_headline(comparison.headline)
    tracker.log_table(comparison.images, "comparison")
    tracker.log_table(comparison.storage, "rate_distortion")
    for picture in pictures:
        tracker.log_artifact(picture, "pictures")
    for file in ("details.json", "metrics.json"):
        if (folder / file).is_file():
            tracker.log_artifact(folder / file, "tables")


def track_views(views: Views, pictures: Sequence[Path], tracker: "Tracker") -> None:
    """Records the pictures, and the rank curves with the rank as the step."""
    for picture in pictures:
        tracker.log_artifact(picture, "pictures")
    for name, curve in views.curve.items():
        for rank, cosine in curve.items():
            tracker.log_metrics({f"rank_curve/{name.replace(' ', '_')}": cosine}, int(rank))


def record_training(result: TrainingResult, features: Features, pictures: Sequence[Path], tracker: "Tracker") -> None:
    """Logs the best epoch's metrics, pictures and the best model (the curves are logged epoch by epoch)."""
    from subspacelab.tracking.protocol import ModelFiles, pinned

    arch = result.folder.name
    tracker.log_metrics(result.metrics, result.progress.best_epoch)
    tracker.log_metrics({f"best_{name}": value for name, value in result.metrics.items() if name.startswith("val_")})
    for picture in pictures:
        tracker.log_artifact(picture, "pictures")
    tokens, dim = features.meta.tokens, features.meta.dim
    tracker.log_model(
        ModelFiles(
            name=f"lowrank_{arch}",
            folder=result.folder,
            files=[f"{BEST_MODEL}.safetensors", f"{BEST_MODEL}.json"],
            code=Path(__file__).with_name("mlflow_model.py"),
            pip_requirements=pinned("torch", "safetensors", "numpy"),
            metrics=result.metrics,
            step=result.progress.best_epoch,
            tensors=((tokens, dim), (tokens, dim)),
            registered="lowrank",
            headline="val_cosine",
        )
    )


class RunLog:
    """Settings, one line per epoch, and the final summary of one training."""

    def __init__(self, root: Path, name: str, config: Mapping[str, Any]) -> None:
        self._root, self._name, self._config = root, name, config

    @cached_property
    def folder(self) -> Path:
        """log/logs_<timestamp>, made with config.json in it at the first line: a training that is refused has none."""
        folder = _new_folder(self._root, self._name)
        write_json(folder / "config.json", json.loads(json.dumps(dict(self._config), default=str)))
        return folder

    def epoch(self, metrics: Mapping[str, float], epoch: int) -> None:
        """Appends an epoch's line to training.log."""
        with (self.folder / "training.log").open("a", encoding="utf-8") as file:
            time = datetime.now().isoformat(timespec="seconds")
            file.write(f"{time} epoch {epoch} {' '.join(f'{k}={v:.6g}' for k, v in metrics.items())}\n")

    def summary(self, result: TrainingResult) -> None:
        """Writes final_summary.json."""
        write_json(self.folder / "final_summary.json", {"folder": str(result.folder), **asdict(result.progress)})


def _new_folder(root: Path, name: str) -> Path:
    """`root/name`, or `root/name_2`, ... : two trainings may begin in one second."""
    for number in count(1):
        folder = root / (name if number == 1 else f"{name}_{number}")
        with suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise AssertionError


@contextmanager
def open_run_log(config: Mapping[str, Any], log: Log, root: Path = Path("log")) -> Iterator[tuple[RunLog | None, Log]]:
    """Yields the log and a `log(metrics, epoch)` that writes to it and calls `log`; nothing but in the main process."""
    if not is_main_process():
        yield None, log
        return
    if root.exists() and not root.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(root))
    hand = RunLog(root, f"logs_{datetime.now():%Y%m%d_%H%M%S}", config)

    def both(metrics: Mapping[str, float], epoch: int) -> None:
        hand.epoch(metrics, epoch)
        log(metrics, epoch)

    yield hand, both
