"""A measured embedding and a measured norm layer, and their entries in the report."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor

from subspacelab.norms.moments import Moments, VectorStatistics, moments
from subspacelab.norms.survey import EmbeddingLayer, NormLayer

NUM_EXTREMES = 10


@dataclass(frozen=True)
class Embedding:
    """An embedding with its statistics."""

    layer: EmbeddingLayer
    """Name, key and shape of the embedding."""
    vectors: VectorStatistics
    """Norms of the vectors and moments of the entries."""
    num_padding: int | None = None
    """Rows at the end without a token; None for other kinds of embeddings, and without a tokenizer.json."""
    tokens: Mapping[int, str] | None = None
    """Id -> token of the shortest and longest vectors, if the tokens are known."""

    @classmethod
    def of(cls, layer: EmbeddingLayer, vectors: VectorStatistics, vocabulary: Mapping[int, str] | None) -> "Embedding":
        """The embedding with facts from the vocabulary, id -> token."""
        if vocabulary is None:
            return cls(layer, vectors)
        bare = cls(layer, vectors, num_padding(vocabulary, layer.first_id, layer.num_vectors), {})
        ids = [entry["id"] for descending in (False, True) for entry in bare._extremes(descending=descending)]
        return replace(bare, tokens={i: vocabulary[i] for i in sorted(ids) if i in vocabulary})

    def to_json(self) -> dict[str, Any]:
        """Its entry under `embedding_layers`."""
        norms, weights = moments(self.vectors.norms), self.vectors.weights
        return {
            "kind": self.layer.kind,
            "embedding_shape": list(self.layer.shape),
            "vocab_size": self.layer.num_vectors,
            "embedding_dim": self.layer.width,
            **_norm_keys(norms),
            "weight_mean": weights.mean,
            "weight_abs_mean": weights.abs_mean,
            "weight_std": weights.std,
            **self._padding(),
            "smallest": self._extremes(descending=False),
            "largest": self._extremes(descending=True),
        }

    @property
    def num_tokens(self) -> int:
        """Number of vectors without padding; all of them if the tokens are not known."""
        return self.layer.num_vectors - (self.num_padding or 0)

    def _padding(self) -> dict[str, Any]:
        """Statistics with and without the rows beyond the tokenizer, if there are such rows and a tokenizer."""
        if self.num_padding is None:
            return {}
        parts = {"tokens": self.vectors.norms[: self.num_tokens], "padding": self.vectors.norms[self.num_tokens :]}
        return {
            "padding_rows": len(parts["padding"]),
            **{name: _norm_keys(moments(norms)) for name, norms in parts.items() if len(norms)},
        }

    def _extremes(self, *, descending: bool) -> list[dict[str, Any]]:
        """The shortest or longest vectors without padding, by id, with their tokens."""
        norms: Tensor = self.vectors.norms[: self.num_tokens]
        order = norms.argsort(descending=descending, stable=True)[:NUM_EXTREMES].tolist()
        found = []
        for i in order:
            entry: dict[str, Any] = {"id": self.layer.first_id + i, "norm": float(norms[i])}
            if self.tokens is not None:
                entry["token"] = self.tokens.get(self.layer.first_id + i)
            found.append(entry)
        return found


@dataclass(frozen=True)
class Norm:
    """A norm layer with its statistics."""

    layer: NormLayer
    """Name, keys and type of the layer."""
    shape: tuple[int, ...]
    """Shape of the scale."""
    scale: Moments
    """Moments of the effective scale: the stored values, or 1 + them (`layer.zero_centred`)."""
    stored_mean: float
    """Mean of the stored values."""
    bias: Moments | None
    """Moments of the bias; None without one."""
    doubt: str | None = None
    """Why the statistics may not be those of the effective scale; None without a doubt."""

    def to_json(self) -> dict[str, Any]:
        """Its entry under `norm_layers`; the keys for zero-centred norms and for doubts only if they apply."""
        scale = asdict(self.scale)
        return {
            "type": self.layer.type,
            "tower": self.layer.tower,
            "block": self.layer.name.block,
            "shape": list(self.shape),
            "param_count": scale.pop("count"),
            **scale,
            "bias": asdict(self.bias) if self.bias else None,
            **({"stored_mean": self.stored_mean, "zero_centered": True} if self.layer.zero_centred else {}),
            **({"warning": self.doubt} if self.doubt else {}),
        }


def by_group(embeddings: Sequence[Embedding]) -> list[list[Embedding]]:
    """The embeddings in groups: those that differ only in the block are together."""
    groups: dict[str, list[Embedding]] = {}
    for embedding in embeddings:
        groups.setdefault(embedding.layer.group, []).append(embedding)
    return list(groups.values())


def _norm_keys(norms: Moments) -> dict[str, float]:
    return {"norm_mean": norms.mean, "norm_std": norms.std, "norm_min": norms.min, "norm_max": norms.max}


def num_padding(vocabulary: Mapping[int, str], first_id: int, num_rows: int) -> int:
    """Rows at the end of a table, ids first_id ... first_id + num_rows - 1, without a token in the vocabulary."""
    last = max((i for i in vocabulary if i < first_id + num_rows), default=-1)
    return min(num_rows, first_id + num_rows - 1 - last)
