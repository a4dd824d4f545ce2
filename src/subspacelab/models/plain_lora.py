"""An adapter as everybody loads it: plain PEFT on the original base."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from subspacelab.models.causal_lm import load_causal_lm
from subspacelab.models.lora_folder import require_plain_lora
from subspacelab.models.lora_freeze import quiet_peft


def load_plain(base: Path, adapter: Path, *, device: torch.device) -> Any:
    """The base model in `base` with the adapter in `adapter` on it, in evaluation mode, all frozen.

    Returned is the base's own class with LoRA layers in it, so that it generates as the base does.
    """
    require_plain_lora(adapter)
    model = load_causal_lm(base, device=device)
    with quiet_peft():
        return PeftModel.from_pretrained(model, str(adapter), is_trainable=False).eval().get_base_model()
