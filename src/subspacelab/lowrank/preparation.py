"""From a cache of features to the input of a training: scale, common basis, batches."""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import zip_longest
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from subspacelab.core.devices import float64_place, free_device_memory, solve
from subspacelab.linalg.moments import gram
from subspacelab.lowrank.features import DTYPES, Features

Kind = Literal["rms", "layernorm", "none"]


@dataclass(frozen=True)
class Normalisation:
    """How raw features are normalised for training and comparison."""

    kind: Kind = "none"
    """rms: all features by one number, which changes neither ranks nor cosines; layernorm: each token; none."""
    scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """The root mean square of the training features, for rms; else 1."""

    def apply(self, raw: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Normalised features."""
        if self.kind == "layernorm":
            return F.layer_norm(raw, raw.shape[-1:])
        return raw / self.scale

    def undo(self, normalised: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Back to the raw scale; the means and deviations removed by layernorm are lost."""
        return normalised * self.scale


BATCH = 16


@dataclass(frozen=True)
class FeatureStatistics:
    """Scale and PCA basis of a set of pictures."""

    normalisation: Normalisation
    """With the scale filled in."""
    basis: Float[Tensor, "dim dim"]
    """Eigenvectors of sum X^T X over the normalised pictures (uncentred, as the SVD is), strongest first, float64."""


def feature_statistics(
    features: Features, rows: Sequence[int], kind: Kind, device: torch.device | None = None
) -> FeatureStatistics:
    """One pass over the pictures in float64, a few in memory at a time."""
    dim = features.meta.dim
    unscaled = Normalisation(kind)
    place = float64_place(device or torch.device("cpu"))
    total = torch.zeros(dim, dim, dtype=torch.float64, device=place)
    for i in range(0, len(rows), BATCH):
        x = unscaled.apply(features.read(rows[i : i + BATCH]))
        total += gram(x.reshape(-1, dim), device=place)
    square = total.trace().item() / (len(rows) * features.meta.tokens * dim)
    if not math.isfinite(square):
        raise ValueError(f"{features.folder}: NaN or infinity among the training pictures' features; cache them again")
    if not square:
        raise ValueError(f"{features.folder}: the training pictures' features are all zero; cache them again")
    scale = square**0.5 if kind == "rms" else 1.0
    basis = solve(torch.linalg.eigh, total).eigenvectors.flip(1)
    return FeatureStatistics(Normalisation(kind, scale), basis.cpu())


def epoch_order(rows: Sequence[int], seed: int, epoch: int) -> list[int]:
    """The rows in an order drawn from (seed, epoch)."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return [rows[i] for i in torch.randperm(len(rows), generator=generator).tolist()]


def batches_of(rows: Sequence[int], batch_size: int) -> list[list[int]]:
    """Consecutive batches; the last may be smaller."""
    return [list(rows[i : i + batch_size]) for i in range(0, len(rows), batch_size)]


def read_batches(
    features: Features, batches: Sequence[Sequence[int]], normalisation: Normalisation, device: torch.device
) -> Iterator[Float[Tensor, "batch tokens dim"]]:
    """Normalised features of each batch on `device`, the next one on its way meanwhile.

    For a GPU a thread reads ahead into pinned memory. On a CPU the system is told which pages come next: a thread of
    ours would take cores from the network.
    """
    read = _read_pinned if device.type == "cuda" else _read_in_place
    for x in read(features, batches):
        yield normalisation.apply(x.to(device, non_blocking=True))


RESIDENT_SHARE = 0.25
"""Of a GPU's free memory, that features may take to stay there."""


class BatchReader:
    """Normalised batches of some rows on a device, epoch by epoch: out of its memory where they fit, else read anew."""

    def __init__(
        self, features: Features, rows: Sequence[int], normalisation: Normalisation, device: torch.device
    ) -> None:
        """Copies the rows to a GPU, as they are stored, where they take at most RESIDENT_SHARE of its free memory."""
        self._features, self._normalisation, self._device = features, normalisation, device
        dtype, (_, tokens, dim) = DTYPES[features.meta.dtype], features.shape
        self.is_resident = len(rows) * tokens * dim * dtype.itemsize <= RESIDENT_SHARE * free_device_memory(device)
        """Whether they fit."""
        if self.is_resident:
            self._place = {row: place for place, row in enumerate(rows)}
            self._kept = torch.empty(len(rows), tokens, dim, dtype=dtype, device=device)
            for kept, batch in zip(self._kept.split(BATCH), batches_of(rows, BATCH), strict=True):
                kept.copy_(features.read(batch))

    def read(self, batches: Sequence[Sequence[int]]) -> Iterator[Float[Tensor, "batch tokens dim"]]:
        """What `read_batches` gives."""
        if not self.is_resident:
            yield from read_batches(self._features, batches, self._normalisation, self._device)
            return
        for batch in batches:
            yield self._normalisation.apply(self._kept[[self._place[row] for row in batch]].float())


def _read_in_place(features: Features, batches: Sequence[Sequence[int]]) -> Iterator[Tensor]:
    for batch, following in zip_longest(batches, batches[1:], fillvalue=()):
        features.will_need(following)
        yield features.read(batch)


def _read_pinned(features: Features, batches: Sequence[Sequence[int]]) -> Iterator[Tensor]:
    with ThreadPoolExecutor(1) as reader:
        ahead = [reader.submit(lambda rows: features.read(rows).pin_memory(), rows) for rows in batches[:1]]
        for following in [*batches[1:], None]:
            x = ahead.pop().result()
            if following is not None:
                ahead.append(reader.submit(lambda rows: features.read(rows).pin_memory(), following))
            yield x
