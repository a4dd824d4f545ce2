"""What training needs to know of the training pictures: their scale and their common basis."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from subspacelab.devices import float64_place, solve
from subspacelab.linalg.gram import gram
from subspacelab.lowrank.features import Features
from subspacelab.lowrank.normalisation import Kind, Normalisation

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
