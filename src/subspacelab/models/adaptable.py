"""Modules of a model that a LoRA adapter can adapt, found from config.json without loading weights."""

from typing import Any

import torch
from torch import nn

from subspacelab.checkpoints import Checkpoint, config_errors
from subspacelab.checkpoints.index import CONFIG_NAME
from subspacelab.core.errors import CheckpointError
from subspacelab.models.causal_lm import SAME_PRODUCT, known_to_peft, quiet, require_own_settings


def described_model(checkpoint: Checkpoint) -> Any:
    """The model that config.json describes, on the device "meta": names and shapes, no entries.

    CheckpointError if there is no config.json, or if transformers knows no model for it.
    """
    import transformers

    config, reference = checkpoint.config, checkpoint.source.reference
    kind, names = config.get("model_type"), config.get("architectures") or []
    if not kind or not names:
        raise CheckpointError(f"{reference}: no {CONFIG_NAME} that names model_type and architectures; give a folder")
    require_own_settings(checkpoint, checkpoint.source.folder / CONFIG_NAME)
    try:
        with quiet(), torch.device("meta"), torch.random.fork_rng(devices=[]):
            kind_of_model = getattr(transformers, names[0])
            if not issubclass(kind_of_model, transformers.PreTrainedModel):
                raise TypeError(f"{names[0]} is no model")
            return kind_of_model(transformers.AutoConfig.for_model(**config))
    except config_errors() as e:
        raise CheckpointError(
            f"{reference}: {CONFIG_NAME} describes no model that transformers knows (model_type {kind!r}, "
            f"{names[0]}: {' '.join(str(e).split())[:120]}); give another checkpoint"
        ) from e


def adaptable_modules(model: nn.Module) -> dict[str, bool]:
    """Name of each linear layer that PEFT adapts -> whether its weight is stored [in, out], as in `Conv1D`.

    Excluded: weights tied to an embedding; subclasses with their own forward pass (routers); names that PEFT takes for
    fused experts.
    """
    from transformers.pytorch_utils import Conv1D

    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    linears = {
        name: isinstance(module, Conv1D)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and (type(module).forward in (nn.Linear.forward, Conv1D.forward) or type(module).__name__ in SAME_PRODUCT)
        and id(module.weight) not in embeddings
    }
    known = known_to_peft(model, list(linears))
    return {name: turned for name, turned in linears.items() if name in known}
