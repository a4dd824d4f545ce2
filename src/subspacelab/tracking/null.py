"""The tracker that keeps nothing: TRACKING=off, --no-track, and every process but the first of several."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from subspacelab.tracking.protocol import ModelFiles

if TYPE_CHECKING:
    import pandas as pd


class NullTracker:
    """Listens to everything and keeps nothing."""

    run_id: str | None = None

    def log_params(self, params: Mapping[str, object]) -> None: ...

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None: ...

    def log_headline(self, metrics: Mapping[str, float]) -> None: ...

    def log_artifact(self, path: Path, folder: str | None = None) -> None: ...

    def log_table(self, table: "pd.DataFrame", name: str) -> None: ...

    def log_model(self, model: ModelFiles) -> None: ...

    def set_tags(self, tags: Mapping[str, object]) -> None: ...
