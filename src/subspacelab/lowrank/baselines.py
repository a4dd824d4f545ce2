"""The compared ways to approximate X at a rank, and their cost."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from subspacelab.core.devices import choose_device, float64_place
from subspacelab.linalg.subspaces import random_orthonormal
from subspacelab.linalg.token_svd import TokenSVD, sketch_basis, token_svd
from subspacelab.lowrank.architectures import Factors, LowRankNet, build_model, canonical_arch
from subspacelab.lowrank.features import Features
from subspacelab.lowrank.preparation import Normalisation, feature_statistics
from subspacelab.lowrank.state import LowRankModel, load_model

Approximate = Callable[[Float[Tensor, "batch tokens dim"]], Float[Tensor, "batch tokens dim"]]
Factorise = Callable[[Float[Tensor, "batch tokens dim"]], Factors]
SVD, PCA_SKETCH, RANDOM_SKETCH = "SVD", "PCA sketch", "random sketch"
PCA_BASIS, RANDOM_BASIS = "PCA basis", "random basis"
CONTROLS = (PCA_SKETCH, RANDOM_SKETCH, PCA_BASIS, RANDOM_BASIS)


@dataclass(frozen=True)
class Evaluation:
    """Trained models that may be compared, and on what."""

    models: dict[str, LowRankModel]
    """Architecture to model; they share rank, seed and normalisation."""
    rank: int
    """Rank of every approximation."""
    seed: int
    """Seed of the split, and of the random sketch and basis."""
    rows: list[int]
    """Rows of the test pictures."""
    normalisation: Normalisation
    """Normalisation of the features that all methods approximate."""
    device: torch.device
    """Device of the computation."""


Models = Path | str | LowRankModel | Sequence[LowRankModel]
"""Trained networks: the results folder that holds one for each architecture, a network, or several."""


def open_evaluation(
    features: Features, models: Models, archs: Sequence[str], rank: int | None, device: str
) -> Evaluation:
    """The models that may be compared and the test pictures of their seed, normalised as the models were trained.

    Without `rank` it is that of the first model. `device` mps means the CPU: the SVD needs float64. Raises ValueError
    when a model is of another rank, of other features, or was trained with another seed or normalisation than the
    others: then there is no common test picture or no common measure.
    """
    place = float64_place(choose_device(device))
    features.require_whole()
    archs = [archs] if isinstance(archs, str) else archs
    models = [models] if isinstance(models, LowRankModel) else models
    named = read_models(Path(models), archs) if isinstance(models, str | Path) else name_models(models, archs)
    first = next(iter(named.values()))
    rank = rank or first.network.spec.rank
    require_comparable(features, named, rank)
    by_arch = {model.network.spec.arch: _placed(model, place) for model in named.values()}
    rows, normalisation = features.split(first.seed)["test"], first.network.spec.normalisation
    return Evaluation(by_arch, rank, first.seed, rows, normalisation, place)


def _placed(model: LowRankModel, device: torch.device) -> LowRankModel:
    """The model on a device; the caller's own model is not moved."""
    return model if device.type == "cpu" else replace(model, network=deepcopy(model.network).to(device))


def read_models(results_dir: Path, archs: Sequence[str]) -> dict[str, LowRankModel]:
    """The trained models of some architectures, or of all in `results_dir` when none is named."""
    names = [canonical_arch(name) for name in archs] or _trained(results_dir)
    return {str(results_dir / name): load_model(results_dir / name) for name in names}


def name_models(models: Sequence[LowRankModel], archs: Sequence[str]) -> dict[str, LowRankModel]:
    """Each model under its architecture, or only those of `archs`; ValueError for two of one, and for none."""
    wanted = [canonical_arch(name) for name in archs]
    named: dict[str, LowRankModel] = {}
    for model in models:
        arch = model.network.spec.arch
        if arch in named:
            raise ValueError(f"models: two of {arch}; compare one of each architecture at a time")
        named[arch] = model
    found = {arch: model for arch, model in named.items() if not wanted or arch in wanted}
    if not found:
        raise ValueError(f"models: none of {', '.join(wanted) or 'any architecture'}; train one by `train`")
    return found


def require_comparable(features: Features, models: Mapping[str, LowRankModel], rank: int) -> None:
    """ValueError unless all models belong to these features and one rank, with the same seed and normalisation."""
    first = next(iter(models.values()))
    other = first.network.spec.arch
    for name, trained in models.items():
        spec = trained.network.spec
        if (spec.tokens, spec.dim) != features.shape[1:]:
            shape = list(features.shape[1:])
            raise ValueError(f"{name}: trained on [{spec.tokens}, {spec.dim}], {features.folder} holds {shape}")
        if trained.features not in (None, features.digest()):
            raise ValueError(
                f"{name}: trained on other features than those in {features.folder}, whose test pictures it may have "
                "seen; train on these anew, in another --results-dir"
            )
        if spec.rank != rank:
            raise ValueError(f"{name}: holds rank {spec.rank}, asked for {rank}; train that rank or ask for this one")
        if trained.seed != first.seed:
            raise ValueError(f"{name}: trained with seed {trained.seed}, {other} with {first.seed}; retrain one")
        if spec.normalisation != first.network.spec.normalisation:
            raise ValueError(f"{name}: its normalisation differs from that of {other}; retrain one")


def _trained(results_dir: Path) -> list[str]:
    from subspacelab.lowrank.architectures import ALIASES

    names = [name for name in ALIASES if (results_dir / name / "best_model.json").is_file()]
    if not names:
        raise ValueError(f"{results_dir}: no trained model there; train one with `lowrank train`")
    return names


def num_power_steps(models: Mapping[str, LowRankModel]) -> int:
    """Power steps of the trained Sketch, so that the untrained ones differ only in Omega."""
    return models.get("Sketch", next(iter(models.values()))).network.spec.power_steps


def factorisations(
    models: Mapping[str, LowRankModel],
    basis: Float[Tensor, "dim k"],
    rank: int,
    seed: int,
    svd: Callable[[Tensor], TokenSVD] = token_svd,
) -> dict[str, Factorise]:
    """Method to A and B of normalised features at `rank`: SVD by `svd`, the models, and four controls.

    `PCA sketch`: the Sketch with Omega at the leading columns of `basis`, where its training starts by default;
    `random sketch`: with a Gaussian Omega. `PCA basis`, `random basis`: B = V^T, one for all pictures, from `basis` or
    uniform; a random one keeps rank/dim of the energy on average, a cosine of about sqrt(rank/dim).
    Controls compute in the precision of X, as the networks do; `token_svd` in float64.
    """
    leading, steps = basis[:, :rank], num_power_steps(models)
    omega, haar = (draw(basis.shape[0], rank, seed).to(basis.device) for draw in (random_omega, random_basis))
    found: dict[str, Factorise] = {SVD: lambda x: _on(svd(x).U[..., :rank], x)}
    for name, trained in models.items():
        found[name] = lambda x, model=trained.network: Factors(*model(x)[:2])  # type: ignore[misc]
    for name, start in {PCA_SKETCH: leading, RANDOM_SKETCH: omega}.items():
        found[name] = lambda x, start=start: _on(sketch_basis(x, start.to(x.dtype), steps), x)  # type: ignore[misc]
    for name, v in {PCA_BASIS: leading, RANDOM_BASIS: haar}.items():
        found[name] = lambda x, v=v: Factors(x @ v.to(x.dtype), v.to(x.dtype).T)  # type: ignore[misc]
    return found


def _on(q: Float[Tensor, "batch tokens rank"], x: Float[Tensor, "batch tokens dim"]) -> Factors:
    """X projected on orthonormal columns, in their dtype."""
    return Factors(q, q.mT @ x.to(q.dtype))


def approximations(
    models: Mapping[str, LowRankModel], basis: Float[Tensor, "dim k"], rank: int, seed: int
) -> dict[str, Approximate]:
    """Method to A B of `factorisations`; of a network that refines, what it makes of that."""
    found: dict[str, Approximate] = {}
    for name, factorise in factorisations(models, basis, rank, seed).items():
        found[name] = lambda x, factorise=factorise: torch.matmul(*factorise(x))  # type: ignore[misc]
    for name, trained in models.items():
        found[name] = lambda x, model=trained.network: model(x)[2]  # type: ignore[misc]
    return found


def random_omega(dim: int, rank: int, seed: int) -> Float[Tensor, "dim rank"]:
    """A seeded Gaussian sketch."""
    return torch.randn(dim, rank, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_basis(dim: int, rank: int, seed: int) -> Float[Tensor, "dim rank"]:
    """Seeded orthonormal columns, uniform under rotations."""
    return random_orthonormal(dim, rank, torch.Generator().manual_seed(seed))


def train_basis(features: Features, evaluation: Evaluation) -> Float[Tensor, "dim k"]:
    """PCA basis of the training pictures, strongest direction first, k at least the full rank.

    It is that of the first network: a training begins with a pass over all of them, and keeps what it finds. Only
    where none has it, or in another normalisation than theirs, they are read again.
    """
    for trained in evaluation.models.values():
        if trained.basis is not None and trained.network.spec.normalisation == evaluation.normalisation:
            return trained.basis.to(evaluation.device)
    rows = features.split(evaluation.seed)["train"]
    kind, device = evaluation.normalisation.kind, evaluation.device
    return feature_statistics(features, rows, kind, device).basis.to(device)


def untrained(trained: LowRankModel, basis: Float[Tensor, "dim k"]) -> LowRankNet:
    """The network as it was before its first training step: what training is measured against.

    `basis` is that of `train_basis` in the network's own normalisation; a network that started at random draws again.
    """
    spec = trained.network.spec
    start = basis[:, : spec.rank].float() if spec.shortcut else None
    return build_model(spec, seed=trained.seed, basis=start).to(basis.device).eval()


def flops_per_picture(models: Mapping[str, LowRankModel], rank: int, tokens: int, dim: int) -> dict[str, int]:
    """Method to operations that form its approximation of one X [tokens, dim] at `rank`; a multiply-add is two.

    Matrix products are counted by torch, `qr` and `eigh` by `qr_flops` and `eigh_flops`; elementwise work is left out.
    All tensors are on the meta device, so the numbers depend on the shapes alone.
    """
    on_meta = {name: replace(trained, network=deepcopy(trained.network).to("meta")) for name, trained in models.items()}
    basis = torch.empty(dim, dim, dtype=torch.float64, device="meta")
    formulas = {torch.ops.aten.linalg_qr: _qr, torch.ops.aten._linalg_eigh: _eigh}
    found: dict[str, int] = {}
    for name, approximate in approximations(on_meta, basis, rank, seed=0).items():
        with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
            approximate(torch.empty(1, tokens, dim, device="meta"))
        found[name] = counter.get_total_flops()
    return found


def qr_flops(m: int, n: int) -> int:
    """Householder QR of [m, n], m >= n, and its Q [m, n]: 2 n^2 (m - n/3) each (Golub & Van Loan, 5.2)."""
    return 4 * n * n * (3 * m - n) // 3


def eigh_flops(n: int) -> int:
    """Symmetric eigenproblem of side n with vectors: 4/3 n^3 to a tridiagonal, 4/3 n^3 for divide and conquer, 2 n^3
    back (Demmel 1997, 5.3). Deflation makes the second one smaller: an upper bound."""
    return 14 * n**3 // 3


def _qr(shape: Any, *_: Any, **__: Any) -> int:
    return int(torch.Size(shape[:-2]).numel()) * qr_flops(*shape[-2:])


def _eigh(shape: Any, *_: Any, **__: Any) -> int:
    return int(torch.Size(shape[:-2]).numel()) * eigh_flops(shape[-1])
