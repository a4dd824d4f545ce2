"""A tracker that remembers, for tests of whatever logs."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from subspacelab.tracking.protocol import ModelFiles, flatten, require_name

if TYPE_CHECKING:
    import pandas as pd


class MemoryTracker:
    """Keeps all it is told in plain attributes."""

    def __init__(self) -> None:
        self.run_id: str | None = "memory"
        self.params: dict[str, str] = {}
        self.metrics: dict[str, list[tuple[int, float]]] = defaultdict(list)
        self.headline: dict[str, float] = {}
        self.artifacts: list[str] = []
        self.tables: dict[str, pd.DataFrame] = {}
        self.models: dict[str, ModelFiles] = {}
        self.tags: dict[str, str] = {}

    def log_params(self, params: Mapping[str, object]) -> None:
        self.params.update(flatten(params))

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        for name, value in metrics.items():
            self.metrics[require_name(name, "metric")].append((step, float(value)))

    def log_headline(self, metrics: Mapping[str, float]) -> None:
        self.log_metrics(metrics)
        self.headline.update(metrics)

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        self.artifacts.append(f"{folder}/{path.name}" if folder else path.name)

    def log_table(self, table: "pd.DataFrame", name: str) -> None:
        self.tables[require_name(name, "table")] = table

    def log_model(self, model: ModelFiles) -> None:
        self.models[model.name] = model

    def set_tags(self, tags: Mapping[str, object]) -> None:
        self.tags.update({require_name(key, "tag"): str(value) for key, value in tags.items()})
