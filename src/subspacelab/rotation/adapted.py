"""One weight that an adapter changes: size, position and effect of the update, compared with random updates."""

import math
from dataclasses import dataclass
from statistics import fmean, stdev

import torch
from jaxtyping import Float
from torch import Tensor

from subspacelab.checkpoints import Adapter, Checkpoint, LoraLayer, canonical_name, matrix_shape, require_finite
from subspacelab.core.errors import CheckpointError
from subspacelab.linalg.subspaces import principal_angles, random_orthonormal
from subspacelab.linalg.svd import SVD, spectral_gap, svd
from subspacelab.linalg.updates import (
    FactoredSVD,
    effective_rank,
    factored_energy,
    intruder_dimensions,
    norms_of_sum,
    product_svd,
    random_frames_deviation,
)
from subspacelab.models.update_on_inputs import OnInputs
from subspacelab.rotation.metrics import LARGEST_DEFAULT_K, Value, finite, generator_for
from subspacelab.rotation.null_model import Null, with_null
from subspacelab.rotation.plan import gflop

ENERGIES = ("leading_energy", "trailing_energy")
INPUTS = ("input_ratio", "input_ratio_random")
TURNS = ("angle_mean", "intruders")
AFFORDABLE = 2000.0
"""GFLOP of a decomposition (4096 x 4096: 1,237) above which angles and intruders are not computed."""


def audit_gflop(shape: tuple[int, int], null_draws: int) -> float:
    """Cost of a weight: the base's decomposition and, up to `AFFORDABLE`, that of the tuned weight and of each draw."""
    return gflop(shape) * (1 + (1 + null_draws) * (gflop(shape) <= AFFORDABLE))


@dataclass(frozen=True)
class AdaptedWeight:
    """A weight of the base and the factors of its update."""

    adapter: Adapter
    """The open adapter."""
    layer: LoraLayer
    """The factors of this weight."""
    base: Checkpoint
    """The open base checkpoint."""
    key: str
    """Key of the weight in the base."""
    transposed: bool
    """Whether the weight is stored [in, out]."""

    @property
    def name(self) -> str:
        """Its canonical name."""
        return canonical_name(self.key)

    @property
    def shape(self) -> tuple[int, int]:
        """Its shape as a matrix, in the stored layout."""
        return matrix_shape(self.base.info(self.key).shape)

    def read(self) -> Float[Tensor, "m n"]:
        """Its entries; ValueError, naming it, if they are quantised or not finite."""
        self.base.require_floating(self.key)
        stored = self.base.read(self.key)
        require_finite(self.key, stored)
        return stored.reshape(self.shape)


def measure_adapted(
    weight: AdaptedWeight, *, k: int | None, seed: int, null_draws: int, device: torch.device
) -> tuple[dict[str, Value], Float[Tensor, " r"]]:
    """The columns of one weight, described in `auditing.audit`, and the singular values of its update."""
    w = weight.read().to(device)
    left, right = weight.adapter.factors(weight.layer, weight.transposed)
    left, right = left.to(device), right.to(device)
    update, before = product_svd(left, right), svd(w)
    row: dict[str, Value] = {"m": w.shape[0], "n": w.shape[1], "rank": left.shape[1]}
    k = min(k or LARGEST_DEFAULT_K, len(before.S))
    row |= {"k": k, "scaling": weight.adapter.config.scaling(weight.layer.module)} | _sizes(update, before)
    nulls = _energies(row, update, before, k)
    if gflop(weight.shape) <= AFFORDABLE:
        row |= _turn(before, w.double() + (update.U * update.S) @ update.V.T, k)
        if null_draws and update.S[0] > 0:
            generators = [generator_for(seed, weight.name, "audit", str(i)) for i in range(null_draws)]
            drawn = [_turn(before, w.double() + _random_frames(update, generator), k) for generator in generators]
            for column in TURNS:
                values = [draw[column] for draw in drawn]
                nulls[column] = Null(fmean(values), stdev(values) if null_draws > 1 else None)
    else:
        row |= dict.fromkeys(TURNS)
    row |= {"magnitude_change": _magnitude_change(weight, w, left, right)}
    return with_null(row, nulls, (*ENERGIES, *TURNS)), update.S.cpu()


def columns_on_inputs(row: dict[str, Value], width: int, found: OnInputs | None) -> dict[str, Value]:
    """`INPUTS` of a weight with inputs of `width`: ||D X||_F / ||W X||_F over all tokens, and a random update's.

    A Gaussian G of norm ||D||_F has E ||G X||_F^2 = ||G||_F^2 ||X||_F^2 / n for any X. None without inputs.
    """
    if found is None or found.output == 0:
        return dict.fromkeys(INPUTS)
    random = float(row["norm"] or 0) * math.sqrt(found.inputs / width / found.output)
    return {"input_ratio": math.sqrt(found.update / found.output), "input_ratio_random": random}


def _sizes(update: FactoredSVD, before: SVD) -> dict[str, Value]:
    norm = torch.linalg.vector_norm(update.S).item()
    size = torch.linalg.vector_norm(before.S.double()).item()
    largest = update.S[0].item()
    return {
        "norm": norm,
        "relative_norm": norm / size if size > 0 else None,
        "stable_rank": (norm / largest) ** 2 if largest > 0 else 0.0,
        "effective_rank": effective_rank(update.S),
    }


def _energies(row: dict[str, Value], update: FactoredSVD, before: SVD, k: int) -> dict[str, Null]:
    """Adds the energies to the row; returns their null models. The trailing one is None if the frames would overlap."""
    u, v = before.U, before.Vh.T
    row["gap_k"] = finite(spectral_gap(before.S, k))
    row["leading_energy"] = factored_energy(update, u[:, :k], v[:, :k])
    row["trailing_energy"] = factored_energy(update, u[:, -k:], v[:, -k:]) if 2 * k <= len(before.S) else None
    if update.S[0] == 0:
        return {}
    deviation = random_frames_deviation(update.S, u.shape[0], v.shape[0], k)
    return {column: Null(1.0, deviation) for column in ENERGIES if row[column] is not None}


def _turn(before: SVD, after: Float[Tensor, "m n"], k: int) -> dict[str, float]:
    """How far the leading k directions rotate, and how many of those of `after` are far from all those before."""
    tuned = svd(after)
    sides = (before.U[:, :k], tuned.U[:, :k]), (before.Vh[:k].T, tuned.Vh[:k].T)
    angles = [principal_angles(a, b).rad2deg().mean().item() for a, b in sides]
    return {"angle_mean": fmean(angles), "intruders": intruder_dimensions(before.U, tuned.U)}


def _random_frames(update: FactoredSVD, generator: torch.Generator) -> Float[Tensor, "m n"]:
    """A matrix with the update's singular values in uniformly random frames."""
    sides = (update.U, update.V)
    u, v = (random_orthonormal(q.shape[0], q.shape[1], generator).to(q.device) for q in sides)
    return (u * update.S) @ v.T


def _magnitude_change(weight: AdaptedWeight, w: Tensor, left: Tensor, right: Tensor) -> float | None:
    """For DoRA: root mean square over the outputs of magnitude / ||row of W + D|| - 1; None for plain LoRA."""
    magnitude = weight.adapter.magnitude(weight.layer)
    if magnitude is None or weight.layer.is_embedding:
        return None
    norms = norms_of_sum(w.T, right.T, left.T) if weight.transposed else norms_of_sum(w, left, right)
    if magnitude.shape != norms.shape:
        raise CheckpointError(
            f"{weight.adapter.reference}: {weight.layer.module} has {len(magnitude)} magnitudes for {len(norms)} "
            "outputs; give the base that it was trained on"
        )
    factor = magnitude.to(norms.device) / norms
    return (factor - 1).square().mean().sqrt().item()
