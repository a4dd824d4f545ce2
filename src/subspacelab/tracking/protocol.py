"""The calls that a stage may make on a tracker, whether it records nothing, in memory, or in MLflow."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import pandas as pd

    from subspacelab.tracking.datasets import DataSet
    from subspacelab.tracking.notes import Summary


_NAME = re.compile(r"[\w\-. :]+(/[\w\-. :]+)*", re.ASCII)


@dataclass(frozen=True)
class ModelFiles:
    """A model as files (safetensors, JSON) and the code that loads them; nothing is pickled."""

    name: str
    """Name of the model in the tracker."""
    folder: Path
    """The model's files; the code finds them as `context.artifacts["model"]`."""
    code: Path
    """A Python file ending in `mlflow.models.set_model(...)`; type hints on its `predict` give the signature."""
    pip_requirements: Sequence[str]
    """Requirements of the code (`pinned`); never inferred, since that loads the model in a subprocess."""
    params: Mapping[str, object] = field(default_factory=dict)
    """Settings with which the model was made."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Metrics of the model; linked to the model, not only to the run."""
    step: int = 0
    """Epoch or step of the model."""
    files: Sequence[str] = ()
    """Files of the folder that belong to the model; all if empty."""
    tensors: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    """Shapes of one float32 input and output, for a model of arrays: its signature, batched."""
    registered: str = ""
    """Name in the model registry, to which the study's name is added; not registered if empty."""
    headline: str = ""
    """The entry of `metrics` that decides the registry's alias `best`; larger is better."""


class Tracker(Protocol):
    """Receives a run's parameters, metrics, pictures, tables and models."""

    @property
    def run_id(self) -> str | None:
        """The run's id in the store; None if nothing is recorded."""

    def log_params(self, params: Mapping[str, object]) -> None:
        """Records settings; nested mappings become dotted keys."""

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Records a point per metric; `step` is the epoch or the layer index."""

    def log_headline(self, metrics: Mapping[str, float]) -> None:
        """Records the few numbers by which sweeps are compared, on this run and on the pipeline's run."""

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Records a file, or all files of a folder, under `folder`."""

    def log_page(self, path: Path, summaries: "Sequence[Summary]" = ()) -> None:
        """Records a file that summarises the whole pipeline, on this run and on the pipeline's run.

        `summaries`, one per study, become the description of both runs.
        """

    def log_inputs(self, data_sets: "Sequence[DataSet]") -> None:
        """Records the data sets that the run reads."""

    def log_table(self, table: "pd.DataFrame", name: str) -> None:
        """Records a table as `<name>.json`, which the MLflow UI shows as rows and columns."""

    def log_model(self, model: ModelFiles) -> None:
        """Records a model with its code, requirements and metrics."""

    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Records tags by which runs are searched."""


def pinned(*packages: str) -> list[str]:
    """Requirements of this package and `packages` at the versions installed here, such as `torch==2.11.0`."""
    return [f"{name}=={version(name)}" for name in ("subspacelab", *packages)]


def require_name(name: str, kind: str) -> str:
    """Returns `name`; ValueError if the store would refuse it, at once and not at the end of a training."""
    if len(name) > 250 or not _NAME.fullmatch(name) or set(name.split("/")) & {".", ".."}:
        allowed = "letters, digits, _ - . : space, with single / between parts, at most 250"
        raise ValueError(f"{kind} name {name!r} cannot be tracked; allowed are {allowed}: rename it")
    return name


def trackable(name: str) -> str:
    """`name` with `_` for characters that a store does not accept, such as brackets in a folder's name."""
    return re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII)


def flatten(params: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields dotted names and values as text, `{"a": {"b": 1}}` as `("a.b", "1")`."""
    for key, value in params.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield require_name(f"{prefix}{key}", "param"), str(value)


class NullTracker:
    """Accepts all calls and records nothing."""

    run_id: str | None = None

    def log_params(self, params: Mapping[str, object]) -> None: ...

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None: ...

    def log_headline(self, metrics: Mapping[str, float]) -> None: ...

    def log_artifact(self, path: Path, folder: str | None = None) -> None: ...

    def log_page(self, path: Path, summaries: "Sequence[Summary]" = ()) -> None: ...

    def log_inputs(self, data_sets: "Sequence[DataSet]") -> None: ...

    def log_table(self, table: "pd.DataFrame", name: str) -> None: ...

    def log_model(self, model: ModelFiles) -> None: ...

    def set_tags(self, tags: Mapping[str, object]) -> None: ...


class MemoryTracker:
    """Keeps all records in plain attributes."""

    def __init__(self) -> None:
        self.run_id: str | None = "memory"
        self.params: dict[str, str] = {}
        self.metrics: dict[str, list[tuple[int, float]]] = defaultdict(list)
        self.headline: dict[str, float] = {}
        self.artifacts: list[str] = []
        self.tables: dict[str, pd.DataFrame] = {}
        self.models: dict[str, ModelFiles] = {}
        self.tags: dict[str, str] = {}
        self.inputs: list[DataSet] = []

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

    def log_page(self, path: Path, summaries: "Sequence[Summary]" = ()) -> None:
        for file in (path, *(s.picture for s in summaries if s.picture)):
            self.log_artifact(file)

    def log_inputs(self, data_sets: "Sequence[DataSet]") -> None:
        self.inputs += data_sets

    def log_table(self, table: "pd.DataFrame", name: str) -> None:
        self.tables[require_name(name, "table")] = table

    def log_model(self, model: ModelFiles) -> None:
        self.models[model.name] = model

    def set_tags(self, tags: Mapping[str, object]) -> None:
        self.tags.update({require_name(key, "tag"): str(value) for key, value in tags.items()})
