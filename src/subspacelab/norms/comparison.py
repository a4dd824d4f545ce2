"""Norm layers as curves over depth, and several checkpoints in one table, layer by matching layer."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from subspacelab.norms.measured import Embedding, Norm
from subspacelab.norms.names import split_block
from subspacelab.norms.results import Analysis, kinds_of

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Curve:
    """Norm layers of one kind, block by block."""

    tower: str
    """Part of the model."""
    label: str
    """Name of the layers within a block."""
    blocks: tuple[int, ...]
    """Indices of the blocks, ascending."""
    abs_means: tuple[float, ...]
    """Mean |scale| of the layer in each block."""

    @property
    def metric(self) -> str:
        """Name of the curve in a tracker; the step is the block."""
        return f"abs_mean/{self.tower}.{self.label}"


def depth_curves(norms: Iterable[Norm]) -> list[Curve]:
    """One curve for each kind of norm layer in the blocks, in the order of the model."""
    kinds: dict[tuple[str, str], list[Norm]] = {}
    for norm in norms:
        if norm.layer.name.block is not None:
            kinds.setdefault((norm.layer.tower, norm.layer.name.kind), []).append(norm)
    curves = []
    for (tower, kind), members in kinds.items():
        points = sorted((n.layer.name.block or 0, n.scale.abs_mean) for n in members)
        label = kind.partition("{}.")[2]
        curves.append(Curve(tower, label, tuple(b for b, _ in points), tuple(m for _, m in points)))
    return curves


def compared_curves(norms: Iterable[Norm]) -> dict[tuple[str, str], Curve]:
    """(tower, role of the layers) -> curve, to be compared with the same key of another model.

    The role is the label, except where one name has two roles: a `post_attention_layernorm` normalises the input of the
    MLP (Llama and most others), or the output of attention (Gemma 2/3, OLMo 2/3), which have another norm after the
    MLP.
    """
    curves = depth_curves(norms)
    after_mlp = {curve.tower for curve in curves if curve.label == "post_feedforward_layernorm"}
    on_output = {(tower, "post_attention_layernorm") for tower in after_mlp}
    said = {key: (key[0], f"{key[1]} (of the output)") for key in on_output}
    return {said.get(key, key): curve for curve in curves for key in [(curve.tower, curve.label)]}


def short_name(norm: Norm) -> str:
    """The last two parts of the name of a norm layer outside the blocks."""
    return ".".join(norm.layer.name.layer.split(".")[-2:])


def outside_blocks(norms: Iterable[Norm], tower: str) -> list[Norm]:
    """The norm layers of a tower that belong to no block: stem, final, projector."""
    return [n for n in norms if n.layer.tower == tower and n.layer.name.block is None]


def towers_of(norms: Iterable[Norm]) -> list[str]:
    """The towers of the model that have norm layers, in its order."""
    return list(dict.fromkeys(n.layer.tower for n in norms))


def headline(reports: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """`<model>_token_norm`: the mean norm of the token embedding's vectors, for each report of `norms analyze`."""
    found: dict[str, float] = {}
    for model, report in reports.items():
        tokens = [entry for entry in report["embedding_layers"].values() if entry["kind"] == "token"]
        found |= {f"{model}_token_norm": entry["norm_mean"] for entry in tokens[:1]}
    return found


def scale_curves(reports: Mapping[str, Mapping[str, Any]]) -> "pd.DataFrame":
    """scales.csv: model, module, block and abs_mean of every norm layer in a block, from such reports."""
    import pandas as pd

    rows = [
        {
            "model": model,
            "module": f"{model} {entry['tower']}.{split_block(layer)[1].partition('{}.')[2]}",
            "block": entry["block"],
            "abs_mean": entry["abs_mean"],
        }
        for model, report in reports.items()
        for layer, entry in report["norm_layers"].items()
        if entry["block"] is not None
    ]
    return pd.DataFrame(rows, columns=["model", "module", "block", "abs_mean"])


COLUMNS = (
    *("what", "layer", "model", "model_type", "shape", "count"),
    *("norm_mean", "norm_std", "norm_min", "norm_max"),
    *("mean", "abs_mean", "std", "min", "max", "stored_mean"),
)


def comparison_table(analyses: Sequence[Analysis]) -> "pd.DataFrame":
    """One row per embedding and per reported norm layer of each model; matching kinds and layers follow each other.

    norm_* are of an embedding's vectors, the other columns of entries; for a zero-centred norm, of the entries of 1 +
    w.
    """
    import pandas as pd

    rows = [row for kind in kinds_of(analyses) for a in analyses for row in _embedding_rows(a, kind)]
    norms = [row for analysis in analyses for row in _norm_rows(analysis)]
    order = list(dict.fromkeys(row["layer"] for row in norms))
    place = {layer: i for i, layer in enumerate(order)}
    rows += sorted(norms, key=lambda row: place[row["layer"]])
    return pd.DataFrame(rows, columns=list(COLUMNS))


def comparison_rows(analyses: Sequence[Analysis]) -> Iterator[list[str]]:
    """Rows for the terminal: one per kind, a column per model; several tables or norm layers of a kind give a range."""
    yield ["family", *(a.model_type for a in analyses)]
    yield ["embeddings", *(str(len(a.embedding_layers)) for a in analyses)]
    yield ["norm layers", *(str(len(a.norm_layers)) for a in analyses)]
    for kind in kinds_of(analyses):
        yield [f"{kind}: mean norm", *(_range(_mean_norms(a.embedding_layers, kind)) for a in analyses)]
    curves = [{".".join(k): c.abs_means for k, c in compared_curves(a.norm_layers).items()} for a in analyses]
    single = [_outside(a.norm_layers) for a in analyses]
    for found in (curves, single):
        for name in dict.fromkeys(name for each in found for name in each):
            yield [f"{name}: |scale|", *(_range(each.get(name, ())) for each in found)]


def _mean_norms(embeddings: Iterable[Embedding], kind: str) -> list[float]:
    return [float(e.vectors.norms.mean()) for e in embeddings if e.layer.kind == kind]


def _outside(norms: Iterable[Norm]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for norm in norms:
        if norm.layer.name.block is None:
            found.setdefault(f"{norm.layer.tower}.{short_name(norm)}", []).append(norm.scale.abs_mean)
    return found


def _range(values: Sequence[float]) -> str:
    if not values:
        return "-"
    show: Callable[[float], str] = "{:.3g}".format
    return show(values[0]) if len(values) == 1 else f"{show(min(values))}..{show(max(values))}"


def _embedding_rows(analysis: Analysis, kind: str) -> Iterator[dict[str, Any]]:
    for embedding in analysis.embedding_layers:
        if embedding.layer.kind == kind:
            entry = embedding.to_json()
            norms = {key: entry[key] for key in ("norm_mean", "norm_std", "norm_min", "norm_max")}
            what = {"what": f"{kind} embedding", "layer": embedding.layer.name}
            yield _model(analysis) | what | _shape(embedding.layer.shape) | norms | asdict(embedding.vectors.weights)


def _norm_rows(analysis: Analysis) -> Iterator[dict[str, Any]]:
    for norm in analysis.reported:
        what = {"what": norm.layer.type, "layer": norm.layer.name.layer, "stored_mean": norm.stored_mean}
        yield _model(analysis) | what | _shape(norm.shape) | asdict(norm.scale)


def _model(analysis: Analysis) -> dict[str, str]:
    return {"model": analysis.name, "model_type": analysis.model_type}


def _shape(shape: Sequence[int]) -> dict[str, str]:
    return {"shape": "x".join(map(str, shape))}
