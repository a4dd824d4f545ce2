"""Causal language models of any family that transformers knows: loading them, and the linear layers adapters go on."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from subspacelab.checkpoints import config_errors, open_checkpoint, read_config
from subspacelab.checkpoints.index import CONFIG_NAME


def load_causal_lm(folder: Path, *, dtype: torch.dtype | None = None, device: torch.device) -> Any:
    """Reads a folder in evaluation mode; without `dtype` as it is stored, but in float32 on the CPU.

    Nothing is downloaded and no code of the folder runs. ValueError for a quantised checkpoint and for one that lacks
    weights (transformers would fill them with random numbers).
    """
    from transformers import AutoModelForCausalLM

    if not (folder / CONFIG_NAME).is_file():
        raise ValueError(f"{folder}: no config.json, so no language model; give a folder that transformers saved")
    with open_checkpoint(folder):  # refuses files that are missing, damaged, elsewhere, or more than tensors
        _require_causal_lm(folder)
    on_cpu = torch.float32 if device.type == "cpu" else "auto"
    with _quiet():
        model, found = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype or on_cpu,
            local_files_only=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # they are told below
            output_loading_info=True,
        )
    missing = sorted(found["missing_keys"])
    if missing:
        raise ValueError(f"{folder}: {missing[0]} is missing ({len(missing)} weights in all); download it again")
    for name, stored, wanted in sorted(found["mismatched_keys"]):
        raise ValueError(
            f"{folder}: {name} is {list(stored)}, config.json says {list(wanted)}; download the checkpoint again"
        )
    if getattr(model.config, "quantization_config", None) is not None:
        raise ValueError(f"{folder}: quantised; adapters are built on the unquantised checkpoint of this model")
    return model.to(device).eval()


def _require_causal_lm(folder: Path) -> None:
    """ValueError unless config.json describes a causal language model; it is made without weights, to see."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    config = read_config(folder / CONFIG_NAME)
    try:
        with _quiet(), init_empty_weights(), torch.random.fork_rng(devices=[]):
            found = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            AutoModelForCausalLM.from_config(found, trust_remote_code=False)
    except config_errors() as e:
        raise ValueError(
            f"{folder / CONFIG_NAME}: describes no causal language model that transformers knows"
            f" (model_type {config.get('model_type')!r}: {' '.join(str(e).split())[:120]}); give another checkpoint"
        ) from e


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' bars and warnings: what matters is said in one line of ours."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model's folder; nothing is downloaded and no code of the folder runs.

    ValueError when there is none, or none that can be read.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as e:  # tokenizers raises Exception itself for a file that it cannot read
        reason = " ".join(str(e).split())[:120]
        raise ValueError(f"{folder}: no tokenizer that can be read ({reason}); restore its tokenizer files") from e


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
