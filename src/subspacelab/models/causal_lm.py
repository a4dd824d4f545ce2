"""Causal language models of any family that transformers knows: loading them, and the linear layers adapters go on."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn


def load_causal_lm(folder: Path, *, dtype: torch.dtype | None = None, device: torch.device) -> Any:
    """Reads a folder in evaluation mode; without `dtype` as it is stored, but in float32 on the CPU.

    Nothing is downloaded and no code of the folder runs. ValueError for a quantised checkpoint and for one that lacks
    weights (transformers would fill them with random numbers).
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: no config.json, so no language model; give a folder that transformers saved")
    logging.disable_progress_bar()
    on_cpu = torch.float32 if device.type == "cpu" else "auto"
    model, found = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype or on_cpu, local_files_only=True, trust_remote_code=False, output_loading_info=True
    )
    missing = sorted(found["missing_keys"])
    if missing:
        raise ValueError(f"{folder}: {missing[0]} is missing ({len(missing)} weights in all); download it again")
    if getattr(model.config, "quantization_config", None) is not None:
        raise ValueError(f"{folder}: quantised; adapters are built on the unquantised checkpoint of this model")
    return model.to(device).eval()


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model's folder; nothing is downloaded and no code of the folder runs."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def trunk_of(model: Any) -> Any:
    """The model without its output head: what runs when only activations are wanted."""
    return model.base_model


def target_linears(model: Any, targets: Sequence[str] | None = None) -> dict[str, nn.Linear]:
    """Module name -> linear layer, in the model's order: all `nn.Linear` but the output head, tied or not.

    `targets` are regular expressions found anywhere in the name; each must find a layer, else ValueError.
    """
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    linears = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head and module.weight is not embedding.weight
    }
    if not linears:
        raise ValueError(f"{type(model).__name__} has no nn.Linear besides its head; adapters need some")
    if targets is None:
        return linears
    for target in targets:
        _require_match(target, linears)
    return {name: module for name, module in linears.items() if any(re.search(target, name) for target in targets)}


def _require_match(target: str, linears: dict[str, nn.Linear]) -> None:
    try:
        pattern = re.compile(target)
    except re.error as e:
        raise ValueError(f"targets: {target!r} is no regular expression ({e})") from e
    if not any(pattern.search(name) for name in linears):
        kinds = sorted({name.rpartition(".")[2] for name in linears})
        raise ValueError(f"targets: {target!r} matches none of the {len(linears)} linear layers; there are {kinds}")
