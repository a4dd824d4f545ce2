"""Linear layers of a model that a LoRA adapter can adapt, and which share of the model they are."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from subspacelab.checkpoints import Checkpoint
from subspacelab.checkpoints.index import CONFIG_NAME
from subspacelab.core.errors import CheckpointError
from subspacelab.models.causal_lm import describing, require_own_settings

SAME_PRODUCT = {"FalconLinear"}
"""Subclasses of `nn.Linear` with their own forward pass that computes the same product."""
FEW = 1 / 3
"""Share of the parameters below which results on the adapted layers say little about the whole model."""


def described_model(checkpoint: Checkpoint) -> Any:
    """The model that config.json describes, on the device "meta": names and shapes, no entries.

    CheckpointError if there is no config.json, or if transformers knows no model for it.
    """
    import transformers

    config, reference = checkpoint.config, checkpoint.source.reference
    names = config.get("architectures") or []
    if not config.get("model_type") or not names:
        raise CheckpointError(f"{reference}: no {CONFIG_NAME} that names model_type and architectures; give a folder")
    require_own_settings(checkpoint, checkpoint.source.folder / CONFIG_NAME)
    with describing("model", checkpoint, f"{reference}: {CONFIG_NAME}"):
        kind = getattr(transformers, names[0])
        if not issubclass(kind, transformers.PreTrainedModel):
            raise TypeError(f"{names[0]} is no model")
        return kind(transformers.AutoConfig.for_model(**config))


def adaptable_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Module name -> `nn.Linear` or `Conv1D` that PEFT adapts, in the model's order, an untied head included.

    Excluded: weights tied to an embedding; subclasses with their own forward pass, since Llama 4's router returns two
    tensors, so no adapter fits; names that PEFT takes for fused experts (shared experts and dense MLPs of DeepSeek-V3
    and related models).
    """
    from transformers.pytorch_utils import Conv1D

    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    linears = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and (type(module).forward in (nn.Linear.forward, Conv1D.forward) or type(module).__name__ in SAME_PRODUCT)
        and id(module.weight) not in embeddings
    }
    known = known_to_peft(model, list(linears))
    return {name: module for name, module in linears.items() if name in known}


def target_linears(model: Any, targets: Sequence[str] | None = None) -> dict[str, nn.Linear]:
    """The adaptable `nn.Linear` layers of a language model, without its output head.

    `targets` are regular expressions, searched anywhere in the name; ValueError if one of them matches no layer.
    """
    head = model.get_output_embeddings()
    layers = adaptable_modules(model).items()
    linears = {name: layer for name, layer in layers if isinstance(layer, nn.Linear) and layer is not head}
    if not linears:
        kinds = sorted({type(m).__name__ for m in model.modules() if getattr(m, "weight", None) is not None})
        raise ValueError(
            f"{type(model).__name__} has no nn.Linear besides its head, and adapters need some; it is made of {kinds}"
        )
    if targets is None:
        return linears
    for target in targets:
        _require_match(target, linears)
    return {name: module for name, module in linears.items() if any(re.search(target, name) for target in targets)}


def known_to_peft(model: Any, names: Sequence[str]) -> set[str]:
    """The names that PEFT keeps; for some families it maps `gate_proj` and similar names to fused experts."""
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    config = LoraConfig(target_modules=list(names))
    convert_peft_config_for_transformers(config, model, None)
    return set(config.target_modules or ())


def _require_match(target: str, linears: dict[str, nn.Linear]) -> None:
    try:
        pattern = re.compile(target)
    except re.error as e:
        raise ValueError(f"targets: {target!r} is no regular expression ({e})") from e
    if not any(pattern.search(name) for name in linears):
        kinds = sorted({name.rpartition(".")[2] for name in linears})
        raise ValueError(f"targets: {target!r} matches none of the {len(linears)} linear layers; there are {kinds}")


@dataclass(frozen=True)
class Reach:
    """Which share of a model the adapters cover."""

    parameters: int
    """Number of parameters of the whole model."""
    reached: int
    """Number of parameters in the adapted layers' weights."""
    left_out: dict[str, int]
    """Kind of weight, with * for its block's number -> number of its parameters."""

    @property
    def share(self) -> float:
        """Share of all parameters that is adapted."""
        return self.reached / self.parameters

    @property
    def share_of_blocks(self) -> float:
        """Share of the parameters in the blocks that is adapted: without embeddings, head and last norm."""
        rest = sum(size for kind, size in self.left_out.items() if ".*" in kind)
        return self.reached / (self.reached + rest)

    def said(self) -> str:
        """One line for the user."""
        largest = sorted(self.left_out.items(), key=lambda item: (-item[1], item[0]))[:3]
        parts = [(kind, 100 * size / self.parameters) for kind, size in largest]
        named = ", ".join(f"{kind} ({part:.0f} %)" for kind, part in parts if part >= 1)
        rest = f", and {100 * self.share_of_blocks:.0f} % of those in its blocks"
        rest += f"; the largest others: {named}" if named else ""
        share = f"{100 * self.share:.0f}" if self.share >= 0.01 else "less than 1"
        reached = f"adapters reach {share} % of {self.parameters:,} parameters"
        return f"{reached}{rest}" if self.share >= FEW else f"warning: {reached}, less than a third{rest}"


def reach(model: Any, linears: Mapping[str, nn.Linear]) -> Reach:
    """How much of the model `linears` cover; fused experts, embeddings and norms are not linear layers."""
    mine = {id(linear.weight): linear.weight.numel() for linear in linears.values()}  # two layers may share one weight
    sizes: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if id(parameter) not in mine:
            kind = re.sub(r"\.\d+(?=\.|$)", ".*", name)
            sizes[kind] = sizes.get(kind, 0) + parameter.numel()
    reached = sum(mine.values())
    return Reach(reached + sum(sizes.values()), reached, sizes)
