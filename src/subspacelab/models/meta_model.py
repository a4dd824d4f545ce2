"""A causal language model without its weights, and a reader that loads parts of them from the shards."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from subspacelab.checkpoints import open_source
from subspacelab.checkpoints.tensors import DTYPE_CODES
from subspacelab.models.causal_lm import quiet, require_causal_lm, require_placed

DTYPES = {code: dtype for dtype, code in DTYPE_CODES.items()}


class Shards:
    """Reads parts of a model from its folder, with the names and conversions of transformers."""

    def __init__(self, folder: Path, model: Any, device: torch.device) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

        self._folder, self._model, self._device = folder, model, device
        self._rules = get_model_conversion_mapping(model)
        renamings = [rule for rule in self._rules if isinstance(rule, WeightRenaming)]
        converters = [rule for rule in self._rules if isinstance(rule, WeightConverter)]
        places = model.state_dict()
        with open_source(folder) as checkpoint:
            self._places = {
                name: rename_source_key(name, renamings, converters, model.base_model_prefix, places)[0]
                for name in checkpoint.names_in_file_order()
            }

    def divide(self, blocks: Sequence[str]) -> None:
        """Loads parameters outside the `blocks` and the ends of the model, such as norms and learned positions."""
        ends = [name for name, module in self._model.named_modules() if module in self._end_modules()]
        apart = tuple(f"{name}." for name in [*blocks, *ends])
        self._read([name for name, place in self._places.items() if not place.startswith(apart)])

    @contextmanager
    def ends(self) -> Iterator[None]:
        """Holds the input embeddings and the output head in memory within the block of code."""
        ends = self._end_modules()
        names = tuple(f"{name}." for name, module in self._model.named_modules() if module in ends)
        self._read([name for name, place in self._places.items() if place.startswith(names)])
        self._model.tie_weights()
        try:
            yield
        finally:
            for module in ends:
                let_go(module)
            self._model.tie_weights()

    @contextmanager
    def loaded(self, block: str) -> Iterator[None]:
        """Holds a block's weights in memory within the block of code."""
        self._read([name for name, place in self._places.items() if place.startswith(f"{block}.")])
        try:
            yield
        finally:
            let_go(self._model.get_submodule(block))

    def _end_modules(self) -> list[nn.Module]:
        ends = (self._model.get_input_embeddings(), self._model.get_output_embeddings())
        return [module for module in ends if module is not None]

    def _read(self, names: Sequence[str]) -> None:
        """Loads stored tensors into the model. The shard is closed afterwards, since mapped pages count as memory."""
        from transformers.core_model_loading import convert_and_load_state_dict_in_model
        from transformers.modeling_utils import LoadStateDictConfig

        config = LoadStateDictConfig(weight_mapping=self._rules, device_map={"": self._device}, dtype=self._model.dtype)
        with open_source(self._folder) as checkpoint, quiet(), torch.no_grad():
            tensors = {name: checkpoint.read(name) for name in names}
            convert_and_load_state_dict_in_model(self._model, tensors, config)
        for parameter in self._model.parameters():
            parameter.requires_grad_(False)


def let_go(module: nn.Module) -> None:
    """Frees the weights of a module; their shapes stay."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            empty = torch.empty_like(parameter, device="meta")
            setattr(part, name, nn.Parameter(empty, requires_grad=False))


def describe_causal_lm(folder: Path, *, device: torch.device) -> tuple[Any, Shards]:
    """The model in a folder with shapes, names and buffers but without weights, and their reader.

    Errors as `load_causal_lm`, except that a model with look-ahead attention is detected only when it runs.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    described, config = require_causal_lm(folder)
    with open_source(folder) as checkpoint:
        infos = (checkpoint.info(name) for name in checkpoint.names)
        stored = {i.name: torch.empty(i.shape, dtype=DTYPES[i.dtype], device="meta") for i in infos}
        with quiet():
            model, found = type(described).from_pretrained(
                None,
                config=config,
                state_dict=stored,
                dtype=torch.float32 if device.type == "cpu" else "auto",
                device_map={"": "meta"},
                ignore_mismatched_sizes=True,  # they are told below
                output_loading_info=True,
            )
        require_placed(folder, model, checkpoint, found)
    with quiet(), torch.random.fork_rng(), init_empty_weights(include_buffers=False):
        twin = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    for name, buffer in twin.named_buffers():  # computed, not read
        owner, _, key = name.rpartition(".")
        setattr(model.get_submodule(owner), key, buffer.to(device))
    return model.eval(), Shards(folder, model, device)
