"""Several checkpoints in one table: a row for each embedding and each reported norm layer of each model."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from subspacelab.norms.results import Analysis

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    *("model", "model_type", "layer", "what", "shape", "count"),
    *("norm_mean", "norm_std", "norm_min", "norm_max"),
    *("mean", "abs_mean", "std", "min", "max"),
)


def comparison_table(analyses: Sequence[Analysis]) -> "pd.DataFrame":
    """The rows, model by model; norm_* are of an embedding's vectors, the rest of entries."""
    import pandas as pd

    return pd.DataFrame([row for analysis in analyses for row in _rows(analysis)], columns=list(COLUMNS))


def _rows(analysis: Analysis) -> Iterator[dict[str, Any]]:
    same = {"model": analysis.name, "model_type": analysis.survey.detected.model_type}
    for embedding in analysis.embeddings:
        entry = embedding.to_json()
        norms = {key: entry[key] for key in ("norm_mean", "norm_std", "norm_min", "norm_max")}
        what = {"layer": embedding.layer.name, "what": f"{embedding.layer.kind} embedding"}
        shape = "x".join(map(str, embedding.layer.shape))
        yield same | what | {"shape": shape} | norms | asdict(embedding.vectors.weights)
    for norm in analysis.reported:
        what = {"layer": norm.layer.name.layer, "what": norm.layer.type}
        yield same | what | {"shape": "x".join(map(str, norm.shape))} | asdict(norm.scale)
