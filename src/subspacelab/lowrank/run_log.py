"""Logs of trainings that a person starts by hand: log/logs_<timestamp>/."""

import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import datetime
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

from subspacelab.core.callbacks import Log
from subspacelab.core.distributed import is_main_process
from subspacelab.core.files import write_json
from subspacelab.lowrank.training import TrainingResult


class RunLog:
    """Config, one line per epoch, and the final summary of one training."""

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
