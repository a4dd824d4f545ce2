"""A causal language model of which a part trains, whichever way that part was chosen or put on it."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from peft import LoraConfig, OFTConfig, OSFConfig, PeftConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.utils import parametrize

from subspacelab.core.devices import solve
from subspacelab.linalg.svd import svd
from subspacelab.models.adaptable import target_linears
from subspacelab.models.causal_lm import load_causal_lm
from subspacelab.models.lora_factors import seeded
from subspacelab.models.lora_model import ADAPTER, lora_layers, open_adapter, quiet_peft


@dataclass(frozen=True)
class Trainable:
    """A model and what of it trains."""

    model: Any
    """The base's own class, with whatever was put on it inside: it runs and generates as the base does."""
    without: Callable[[], AbstractContextManager[object]] | None = None
    """A block within which the model is the base; None where its weights themselves train, or W_res is not W."""

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Name in the model -> parameter that trains."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    @property
    def num_parameters(self) -> int:
        """How many numbers train."""
        return sum(p.numel() for p in self.parameters.values())


@dataclass(frozen=True)
class Base:
    """Where a base lies and how it is loaded."""

    folder: Path
    """A folder that transformers reads."""
    dtype: torch.dtype
    """Of its weights; what is put on it is float32 whatever this is."""
    device: torch.device
    """Where it goes."""

    def load(self) -> Any:
        """The model, in evaluation mode."""
        return load_causal_lm(self.folder, dtype=self.dtype, device=self.device)


def adapted(base: Base, adapter: Path) -> Trainable:
    """The base with an adapter of this project's, of which trains what its method says."""
    live = open_adapter(adapter, base=str(base.folder), trainable=True, dtype=base.dtype, device=base.device)
    return Trainable(live.model.get_base_model(), None if live.initial else live.model.disable_adapter)


def whole(base: Base) -> Trainable:
    """The base, all of whose adaptable layers train: full fine-tuning of what the adapters are put on."""
    model = base.load().requires_grad_(False)
    for linear in target_linears(model).values():
        linear.weight.requires_grad_(True)
    return Trainable(model)


def by_peft(base: Base, config_of: Callable[[list[str]], PeftConfig], seed: int) -> Trainable:
    """The base with what PEFT makes of a config for its adaptable layers, of which trains what PEFT says."""
    model = base.load()
    with seeded(seed), quiet_peft():
        live = get_peft_model(model, config_of(list(target_linears(model))))
    return Trainable(live.eval().get_base_model(), live.disable_adapter)


def mica(targets: list[str], rank: int) -> PeftConfig:
    """MiCA (arXiv 2604.01694): up-projection frozen at bottom left singular vectors, the other trains."""
    return LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, init_lora_weights="mica")


def oft(targets: list[str], rank: int) -> PeftConfig:
    """OFT (arXiv 2306.07280): inputs turned by an orthogonal matrix of blocks `rank` wide."""
    return OFTConfig(oft_block_size=rank, target_modules=targets)


def osf(targets: list[str], rank: int) -> PeftConfig:
    """OSF (arXiv 2504.07097): the upper half of each weight's singular triples is kept, the lower half trains.

    `rank` is not asked: the half is PEFT's default, and the method's.
    """
    return OSFConfig(target_modules=targets)


def oplora(base: Base, adapter: Path, kept: int) -> Trainable:
    """OPLoRA (arXiv 2510.13003): dW = (I - U_k U_k^T) A B (I - V_k V_k^T), of W's k = `kept` top singular triples.

    On a plain LoRA adapter, whose factors are seen through the projections: what trains is A and B. Of a layer with
    fewer than 2 k directions half are kept.
    """
    live = open_adapter(adapter, base=str(base.folder), trainable=True, dtype=base.dtype, device=base.device)
    for _, layer in lora_layers(live.model):
        weight: Tensor = layer.get_base_layer().weight  # type: ignore[assignment]
        found = solve(svd, weight.detach().float())
        k = min(kept, min(weight.shape) // 2)
        sides = ((layer.lora_B, found.U[:, :k], True), (layer.lora_A, found.Vh[:k].T, False))
        for factor, basis, left in sides:
            outside = _Outside(basis.contiguous().to(weight.device), left=left)
            parametrize.register_parametrization(factor[ADAPTER], "weight", outside)
    return Trainable(live.model.get_base_model(), live.model.disable_adapter)


class _Outside(nn.Module):
    """A factor without its part in the span of orthonormal columns: (I - Q Q^T) W, or W (I - Q Q^T)."""

    def __init__(self, basis: Float[Tensor, "dim k"], *, left: bool) -> None:
        super().__init__()
        self.left = left
        self.register_buffer("basis", basis, persistent=False)

    def forward(self, factor: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
        """The projection."""
        q: Tensor = self.basis  # type: ignore[assignment]
        return factor - q @ (q.T @ factor) if self.left else factor - (factor @ q) @ q.T
