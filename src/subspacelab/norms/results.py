"""The results of norms, and the files they are saved as."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import pandas as pd
from pydantic import BaseModel, TypeAdapter, create_model
from torch import Tensor

from subspacelab.checkpoints import read_tensors, write_tensors
from subspacelab.checkpoints.validation import read_checked
from subspacelab.core.files import read_json, write_csv, write_json
from subspacelab.core.ownership import require_own_entries
from subspacelab.norms.families import EmbeddingKind
from subspacelab.norms.measured import Embedding, Norm
from subspacelab.norms.moments import Moments, VectorStatistics
from subspacelab.norms.survey import EmbeddingLayer

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Analysis:
    """The analysis of one checkpoint."""

    model_name: str
    """The repository on the hub, or the folder's name."""
    name: str
    """Short name for files and legends."""
    revision: str | None
    """The commit, for a checkpoint of the hub."""
    device: str
    """Device of the computation."""
    family: str | None
    """Common name of the family; None outside the table."""
    model_type: str
    """The `model_type` of the family; `unknown` outside the table."""
    found_by: str
    """How the family was detected."""
    embedding_layers: tuple[Embedding, ...] = field(repr=False)
    """Every embedding that could be read."""
    norm_layers: tuple[Norm, ...] = field(repr=False)
    """Every norm layer that could be read, reported or not; curves over depth use all."""
    all_norms: bool
    """Whether all norm layers are reported."""
    warnings: tuple[str, ...]
    """Doubts and skipped tensors, one line each."""
    bytes_read: int
    """Size of the tensors that were read."""

    @property
    def reported(self) -> tuple[Norm, ...]:
        """The norm layers in the report: those related to embeddings, or all."""
        return tuple(n for n in self.norm_layers if self.all_norms or n.layer.name.reads_embedding)

    @property
    def norms(self) -> pd.DataFrame:
        """One row per reported norm layer: its name, kind, place and the moments of its scale and bias."""
        return _table({n.layer.name.layer: n.to_json() for n in self.reported})

    @property
    def embeddings(self) -> pd.DataFrame:
        """One row per embedding: its name, kind, shape and the moments of its vectors' norms and of its entries."""
        return _table({e.layer.name: e.to_json() for e in self.embedding_layers})

    def save(self, folder: Path | str) -> None:
        """Writes analysis.json and all vector norms, vectors.safetensors; ValueError if the folder has other files."""
        require_own_entries(Path(folder), PARTS, "an analysis")
        write_tensors(Path(folder) / PARTS[1], {e.layer.key: e.vectors.norms for e in self.embedding_layers})
        plain = {f.name: getattr(self, f.name) for f in fields(self) if not f.name.endswith("_layers")}
        embeddings = [_StoredEmbedding.of(e).model_dump() for e in self.embedding_layers]
        norms = [asdict(norm) for norm in self.norm_layers]
        write_json(Path(folder) / PARTS[0], {**plain, "embedding_layers": embeddings, "norm_layers": norms})

    @classmethod
    def load(cls, folder: Path | str) -> "Analysis":
        """Reads what `save` wrote; ValueError, naming the file, if one is missing or damaged."""
        path, vectors = (Path(folder) / name for name in PARTS)
        if not path.is_file():
            raise ValueError(f"{path}: no analysis here; save one, or analyze again")
        stored = read_checked(path, _STORED, "an analysis")
        norms, _ = read_tensors(vectors)
        absent = next((e.layer.key for e in stored.embedding_layers if e.layer.key not in norms), None)
        if absent is not None:
            raise ValueError(f"{vectors}: {absent} is not in it; analyze again")
        embeddings = tuple(e.measured(norms[e.layer.key]) for e in stored.embedding_layers)
        plain = {name: value for name, value in stored if not name.endswith("_layers")}
        return cls(**plain, embedding_layers=embeddings, norm_layers=stored.norm_layers)

    def plot(self, kind: str = "embedding_norms") -> "Figure":
        """A matplotlib Figure: "embedding_norms" or "norm_scales"; SettingError for other kinds."""
        from subspacelab.norms.plots import KINDS
        from subspacelab.plotting.figures import draw_kind

        return draw_kind(KINDS, kind, self)

    def to_json(self) -> dict[str, Any]:
        """The report, as `norms analyze` writes it."""
        return {
            "model_name": self.model_name,
            "model_type": self.model_type,
            "device": self.device,
            "embedding_layers": {e.layer.name: e.to_json() for e in self.embedding_layers},
            "norm_layers": {n.layer.name.layer: n.to_json() for n in self.reported},
            "total_embedding_layers": len(self.embedding_layers),
            "total_norm_layers": len(self.reported),
        }


PARTS = ("analysis.json", "vectors.safetensors")
"""Files that `Analysis.save` writes."""


class _StoredEmbedding(BaseModel):
    """An embedding in analysis.json; its vectors' norms lie in vectors.safetensors."""

    layer: EmbeddingLayer
    weights: Moments
    num_padding: int | None
    tokens: list[tuple[int, str]] | None

    @classmethod
    def of(cls, e: Embedding) -> "_StoredEmbedding":
        tokens = None if e.tokens is None else list(e.tokens.items())
        return cls(layer=e.layer, weights=e.vectors.weights, num_padding=e.num_padding, tokens=tokens)

    def measured(self, norms: Tensor) -> Embedding:
        tokens = None if self.tokens is None else dict(self.tokens)
        return Embedding(self.layer, VectorStatistics(norms, self.weights), self.num_padding, tokens)


_STORED: TypeAdapter[Any] = TypeAdapter(
    create_model("analysis.json", **get_type_hints(Analysis) | {"embedding_layers": list[_StoredEmbedding]})
)
"""analysis.json: the fields of `Analysis`, its embeddings in their stored form."""

MAGNITUDE, RATIO = 100.0, 1000.0
"""An activation is massive if it exceeds the first, and the second times the median (2402.17762)."""
LAYERS, DIMS, SCALES, SUMMARY = FILES = ("layers.csv", "dims.csv", "scales.csv", "massive.json")
"""Files that `Massive.save` writes."""


@dataclass(frozen=True)
class Massive:
    """The result of `massive`. Layer 0 is the embedding, layer i the residual stream after block i - 1.

    >>> found = massive("org/model", "text.txt")
    >>> found.summary
    >>> found.dims[found.dims["kind"] == "massive"]
    """

    layers: pd.DataFrame
    """One row per layer: `median` |x|, `largest` |x|, its `ratio` to the median of its window, its `dim`, `position`
    and `token`; `massive`: number of massive activations; `first`: how many of them are at the first token of a window;
    `typical_largest`: the median over the dimensions of their largest |x|, which a random dimension would have."""
    dims: pd.DataFrame
    """One row per layer and followed dimension: `kind` (massive; largest: among the largest ratios, but not massive;
    random: the control), `dim`, `layer`, `largest` |x|, its `ratio`, and `massive`: number of massive activations."""
    scales: pd.DataFrame
    """One row per norm layer and followed dimension: `kind`, `dim`, `norm` (its name within a block), `block` (empty
    outside the blocks), the effective `scale`, `typical`: the median |scale| of the layer, `rank`: share of the
    dimensions with a smaller |scale|, 0.5 on average for random ones."""
    metrics: dict[str, Any]
    """Model, settings, number of tokens, headline numbers, notes."""

    @property
    def summary(self) -> str:
        """One sentence: which dimensions, where, how large."""
        return str(self.metrics["summary"])

    def save(self, folder: Path | str) -> None:
        """Writes layers.csv, dims.csv, scales.csv and massive.json; `load` reads them."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, table in zip(FILES, (self.layers, self.dims, self.scales), strict=False):
            write_csv(folder / name, table)
        write_json(folder / SUMMARY, self.metrics)

    @classmethod
    def load(cls, folder: Path | str) -> "Massive":
        """Reads what `save` wrote; ValueError, naming the file, if one is missing or damaged."""
        folder = Path(folder)
        if not (folder / SUMMARY).is_file():
            raise ValueError(f"{folder / SUMMARY}: no measurement here; save one, or measure again")
        metrics = read_json(folder / SUMMARY)
        if not isinstance(metrics, dict) or "summary" not in metrics:
            raise ValueError(f"{folder / SUMMARY}: not what `norms massive` writes; measure again")
        layers, dims, scales = (_read_table(folder / name) for name in (LAYERS, DIMS, SCALES))
        return cls(layers, dims, scales, metrics)

    def plot(self, kind: str = "massive") -> "Figure":
        """A matplotlib Figure: "massive", largest |x| over layers and scales over blocks; else SettingError."""
        from subspacelab.norms.plots import draw_massive
        from subspacelab.plotting.figures import draw_kind

        return draw_kind({"massive": draw_massive}, kind, self)


def _read_table(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, keep_default_na=False, na_values=[""], dtype={"token": str}, encoding="utf-8")
    except (OSError, ValueError) as e:
        raise ValueError(f"{path}: not a table of `norms massive` ({e}); measure again") from e
    return table.astype({"block": "Int64"}) if "block" in table else table


def kinds_of(analyses: Sequence[Analysis]) -> list[str]:
    """The kinds of embedding that any of the models has, always in the same order."""
    found = {e.layer.kind for analysis in analyses for e in analysis.embedding_layers}
    return [kind for kind in get_args(EmbeddingKind) if kind in found]


def _table(entries: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Entries of the report as rows, without the ten shortest and longest vectors."""
    rows = [
        {"layer": name} | {k: v for k, v in e.items() if k not in ("smallest", "largest")}
        for name, e in entries.items()
    ]
    return pd.json_normalize(rows, sep="_")
