"""Analysis of one checkpoint: reads its embeddings and norm layers, and nothing else."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
from pydantic import BaseModel, Field, TypeAdapter
from torch import Tensor

from subspacelab.checkpoints import Checkpoint, Weights, open_checkpoint, require_finite
from subspacelab.checkpoints.validation import read_checked
from subspacelab.core.callbacks import Progress, no_progress
from subspacelab.core.devices import choose_device, float64_place
from subspacelab.norms.measured import Embedding, Norm
from subspacelab.norms.moments import Moments, measure_vectors, moments
from subspacelab.norms.names import NEAR_ZERO, is_known
from subspacelab.norms.results import Analysis
from subspacelab.norms.survey import EmbeddingLayer, NormLayer, Survey, survey

CHUNK_ENTRIES = 1 << 23
"""Entries per read: 16 MB of bf16, one request to the hub."""

AROUND_ZERO = "stored around zero; if this model multiplies by 1 + w, its scales are 1 more than is said here"


def analyze(
    checkpoint: Weights,
    *,
    device: str = "auto",
    all_norms: bool = False,
    embeddings: bool = True,
    curves: bool = True,
    progress: Progress = no_progress,
) -> Analysis:
    """Norms of every embedding vector and moments of every norm layer; no model is loaded, nothing else is read.

    `checkpoint`: a reference, a path, an opened checkpoint, a state dict or a module; from the hub only these tensors
    are fetched. `all_norms` reports every norm layer, not only those that read the embedding stream. Without `curves`,
    norm layers that are not reported are not read. Without `embeddings`, only norm layers are read.

    Quantised tensors are skipped one by one, each with a warning. ValueError, naming the tensor, for NaN or infinity.
    "mps" lacks float64 and means the CPU.

        found = analyze("google/siglip-base-patch16-224")
        found.norms, found.embeddings
    """
    place = float64_place(choose_device(device))
    with open_checkpoint(checkpoint) as opened:
        found = survey(opened)
        all_norms = all_norms or (found.detected.family is not None and found.detected.family.all_norms)
        wanted = tuple(n for n in found.norms if curves or all_norms or n.name.reads_embedding)
        asked = replace(found, norms=wanted, embeddings=found.embeddings if embeddings else ())
        return _analyze(opened, asked, place, all_norms, progress)


def _analyze(
    checkpoint: Checkpoint, found: Survey, place: torch.device, all_norms: bool, progress: Progress
) -> Analysis:
    refused: dict[str, str] = {}
    vocabulary = _vocabulary(checkpoint) if any(e.kind == "token" for e in found.embeddings) else None
    layers = [e for e in found.embeddings if _readable(checkpoint, [e.key], refused)]
    total = sum(checkpoint.info(e.key).nbytes for e in layers)
    with progress(checkpoint.source.name, total / 1e6, "MB") as advance:
        embeddings = tuple(
            _measure_embedding(checkpoint, layer, place, vocabulary if layer.kind == "token" else None, advance)
            for layer in layers
        )
    source = checkpoint.source
    doubtful = found.detected.family is None and not is_known(checkpoint.config)
    norms = _measure_norms(checkpoint, found.norms, doubtful, refused)
    read = [e.layer.key for e in embeddings] + [k for n in norms for k in _keys(n.layer)]
    return Analysis(
        model_name=source.reference if source.revision else source.name,
        name=source.name,
        revision=source.revision,
        device=place.type,
        family=found.detected.family.label if found.detected.family else None,
        model_type=found.detected.model_type,
        found_by=found.detected.found_by,
        embedding_layers=embeddings,
        norm_layers=norms,
        all_norms=all_norms,
        warnings=(*found.warnings, *_doubts(norms), *_torch_files(checkpoint), *refused.values()),
        bytes_read=sum(checkpoint.info(key).nbytes for key in read),
    )


def _measure_embedding(
    checkpoint: Checkpoint,
    layer: EmbeddingLayer,
    device: torch.device,
    vocabulary: Mapping[int, str] | None,
    advance: Callable[[float], None],
) -> Embedding:
    def chunks() -> Iterator[Tensor]:
        for chunk in _read_chunks(checkpoint, layer):
            advance(chunk.nbytes / 1e6)
            yield chunk.to(device)

    vectors = measure_vectors(chunks(), layer.num_vectors)
    _require_finite_norms(layer.key, vectors.norms)
    _require_finite_moments(layer.key, vectors.weights, moments(vectors.norms))
    return Embedding.of(layer, vectors, vocabulary)


def _require_finite_norms(key: str, norms: Tensor) -> None:
    """ValueError, naming the embedding, if one of its vectors has NaN or infinity."""
    bad = (~torch.isfinite(norms)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"{key}: {len(bad)} of {len(norms)} vectors hold NaN or infinity, the first is vector {bad[0]}; "
            "the checkpoint is damaged: download or train it again"
        )


def _require_finite_moments(key: str, *found: Moments) -> None:
    """ValueError for entries whose squares overflow float64, since a report must not hold infinity."""
    if not all(math.isfinite(value) for each in found for value in (each.mean, each.abs_mean, each.std)):
        raise ValueError(f"{key}: entries too large for statistics, beyond 1e150; the checkpoint is damaged")


def _read_chunks(checkpoint: Checkpoint, layer: EmbeddingLayer) -> Iterator[Tensor]:
    """The vectors as rows [rows, width], about `CHUNK_ENTRIES` entries at a time."""
    num_rows = layer.shape[0]
    step = max(1, CHUNK_ENTRIES // max(1, layer.num_vectors * layer.width // max(1, num_rows)))
    for chunk in checkpoint.read_chunks(layer.key, step):
        yield chunk.reshape(-1, layer.width)


def _measure_norms(
    checkpoint: Checkpoint, layers: tuple[NormLayer, ...], doubtful: bool, refused: dict[str, str]
) -> tuple[Norm, ...]:
    """Every readable norm layer. `doubtful`: it is unknown how the model uses the stored values."""
    readable = [layer for layer in layers if _readable(checkpoint, _keys(layer), refused)]
    tensors: dict[str, Tensor] = {}
    for key, tensor in checkpoint.read_many([key for layer in readable for key in _keys(layer)]):
        require_finite(key, tensor)
        tensors[key] = tensor
    measured = []
    for layer in readable:
        bias = moments(tensors[layer.bias_key]) if layer.bias_key else None
        stored = tensors[layer.key]
        as_stored = moments(stored)
        _require_finite_moments(layer.key, as_stored, *([bias] if bias else []))
        scale = moments(1 + stored.double()) if layer.zero_centred else as_stored
        doubt = AROUND_ZERO if doubtful and abs(as_stored.mean) < NEAR_ZERO else None
        measured.append(Norm(layer, tuple(stored.shape), scale, as_stored.mean, bias, doubt))
    return tuple(measured)


def _doubts(norms: tuple[Norm, ...]) -> list[str]:
    """The doubts of all layers in one line."""
    doubtful = [n for n in norms if n.doubt]
    if not doubtful:
        return []
    return [f"{len(doubtful)} of {len(norms)} norm layers, such as {doubtful[0].layer.name.layer}: {AROUND_ZERO}"]


def _keys(layer: NormLayer) -> list[str]:
    return [layer.key] + ([layer.bias_key] if layer.bias_key else [])


def _readable(checkpoint: Checkpoint, keys: list[str], refused: dict[str, str]) -> bool:
    """Whether none of a layer's tensors is quantised; if one is, the reason is added to `refused`."""
    try:
        for key in keys:
            checkpoint.require_floating(key)
            if checkpoint.info(key).num_entries == 0:
                raise ValueError(f"{key}: empty, shape {list(checkpoint.info(key).shape)}; left out")
    except ValueError as e:
        refused[keys[0]] = str(e)
        return False
    return True


def _vocabulary(checkpoint: Checkpoint) -> dict[int, str] | None:
    path = checkpoint.find_file(TOKENIZER_NAME)
    return read_vocabulary(path) if path else None


def _torch_files(checkpoint: Checkpoint) -> list[str]:
    """A warning for torch files on the hub, which cannot be read in part."""
    if checkpoint.source.revision is None or not checkpoint.names:
        return []
    shard = checkpoint.info(checkpoint.names[0]).shard
    if shard.endswith(".safetensors"):
        return []
    return [f"{shard} is no safetensors file: the whole checkpoint was downloaded to read a part of it"]


TOKENIZER_NAME = "tokenizer.json"
Id = Annotated[int, Field(ge=0)]


class _Vocabulary(BaseModel):
    vocab: dict[str, Id] | list[tuple[str, float]]


class _AddedToken(BaseModel):
    id: Id
    content: str


class _Tokenizer(BaseModel):
    """The keys of tokenizer.json that this code reads."""

    model: _Vocabulary
    added_tokens: list[_AddedToken] | None = None


TOKENIZER = TypeAdapter(_Tokenizer)


def read_vocabulary(path: Path) -> dict[int, str]:
    """Id -> token as stored by the tokenizer, added tokens included; ValueError if the file is not a tokenizer.

    The vocabulary of BPE, WordPiece and WordLevel is a mapping token -> id, that of Unigram a list in the order of ids.
    """
    content = read_checked(path, TOKENIZER, "a tokenizer.json")
    stored = content.model.vocab
    tokens = {i: t for t, i in stored.items()} if isinstance(stored, dict) else {i: e[0] for i, e in enumerate(stored)}
    return tokens | {entry.id: entry.content for entry in content.added_tokens or ()}
