"""The networks that compute A and B in one pass: names, aliases, and construction."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from subspacelab.lowrank.architectures.adalora import AdaLoRA
from subspacelab.lowrank.architectures.factor_networks import MLP, FactorNet, Factors, ResMLP, Sketch
from subspacelab.lowrank.architectures.linear import Linear
from subspacelab.lowrank.config import PowerSteps
from subspacelab.lowrank.preparation import Normalisation

ALIASES = {
    "ResMLP": ("symmetric", "LowRankProjSymmetric"),
    "MLP": ("LowRankProjMLP",),
    "AdaLoRA": ("adaptive_adalora", "adaptive", "AdaptiveLowRankProjAdaLoRA"),
    "Sketch": (),
}


@dataclass(frozen=True)
class ModelSpec:
    """Everything that determines a model except its weights; stored with them."""

    arch: str
    """One of the names in ALIASES."""
    tokens: Annotated[int, Field(ge=1)]
    """Rows of X."""
    dim: Annotated[int, Field(ge=1)]
    """Columns of X."""
    rank: Annotated[int, Field(ge=1)]
    """Columns of A, rows of B."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout in the hidden layers."""
    shortcut: bool = True
    """Whether there are linear shortcuts beside the networks (see `FactorNet`)."""
    refine: bool = False
    """Ablation: whether a full layer follows A @ B."""
    power_steps: PowerSteps = 2
    """Power steps of the Sketch."""
    normalisation: Normalisation = field(default_factory=Normalisation)
    """Normalisation of the model's input."""

    def __post_init__(self) -> None:
        if self.arch not in ALIASES:
            raise ValueError(f"arch must be one of {', '.join(ALIASES)}, got {self.arch!r}")


class LowRankNet(nn.Module):
    """A network that factorises, with the normalisation of its training."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.net: FactorNet | Sketch = _BUILDERS[spec.arch](spec)
        self.refine = Linear(spec.dim, spec.dim) if spec.refine else nn.Identity()

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> tuple[Tensor, Tensor, Tensor]:
        """A [batch, tokens, rank], B [batch, rank, dim] and A @ B for normalised features."""
        a, b = self.net(x)
        return a, b, self.refine(a @ b)

    def reconstruct(self, raw: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """The approximation of raw features, on the raw scale if the normalisation can be undone."""
        normalisation = self.spec.normalisation
        approximation: Tensor = normalisation.undo(self(normalisation.apply(raw))[2])
        return approximation


_BUILDERS: dict[str, Callable[[ModelSpec], FactorNet | Sketch]] = {
    "ResMLP": lambda s: ResMLP(s.tokens, s.dim, s.rank, dropout=s.dropout, shortcut=s.shortcut),
    "MLP": lambda s: MLP(s.tokens, s.dim, s.rank, dropout=s.dropout, shortcut=s.shortcut),
    "AdaLoRA": lambda s: AdaLoRA(s.tokens, s.dim, s.rank, dropout=s.dropout, shortcut=s.shortcut),
    "Sketch": lambda s: Sketch(s.dim, s.rank, power_steps=s.power_steps),
}


def canonical_arch(name: str) -> str:
    """The architecture's own name for any of its aliases; ValueError, listing all, for an unknown one."""
    for arch, aliases in ALIASES.items():
        if name == arch or name in aliases:
            return arch
    known = ", ".join(f"{arch} ({', '.join(aliases)})" if aliases else arch for arch, aliases in ALIASES.items())
    raise ValueError(f"arch {name!r}: no such architecture; there are {known}")


def require_rank(rank: int, tokens: int, dim: int) -> None:
    """ValueError for a rank that a [tokens, dim] matrix does not have."""
    if not 1 <= rank <= min(tokens, dim):
        raise ValueError(f"rank: {rank} of a [{tokens}, {dim}] matrix; choose 1 <= rank <= {min(tokens, dim)}")


def build_model(spec: ModelSpec, *, seed: int, basis: Float[Tensor, "dim rank"] | None = None) -> LowRankNet:
    """A fresh model from `seed`; torch's global generator is not changed.

    `basis`: orthonormal columns at which the shortcuts (or the sketch) start; None draws them.
    """
    require_rank(spec.rank, spec.tokens, spec.dim)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LowRankNet(spec)
    if basis is not None:
        model.net.start_from(basis)
    return model


__all__ = [
    "ALIASES",
    "AdaLoRA",
    "FactorNet",
    "Factors",
    "LowRankNet",
    "ModelSpec",
    "Sketch",
    "build_model",
    "canonical_arch",
    "require_rank",
]
