"""Causal language models of any family that transformers knows: loading, with all checks, and their tokenizers."""

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from subspacelab.checkpoints import Checkpoint, config_errors, open_source
from subspacelab.checkpoints.index import ADAPTER_CONFIG, CONFIG_NAME, PREFERENCE, find_weights, repeated_names
from subspacelab.checkpoints.shards import list_tensors
from subspacelab.core.errors import CheckpointError
from subspacelab.core.files import read_json

NO_ADAPTER = {"subfolder": "\0"}
"""Folder in which transformers looks for an adapter beside the weights: a path that cannot exist."""
COMPUTED = re.compile(r"(^|[._])(inv_freq|masked_bias|position_ids|cos_cached|sin_cached)$")
"""Buffers that old versions of transformers stored and present ones compute."""
LAYER_COUNT = re.compile(r"(num|n)_(\w+_)?(layers?|blocks)|(en|de)coder_layers|depth")
COUNT = re.compile(r"(num|n)_(\w+_)?(heads?|experts|labels)")
"""Settings that count the repetitions of a loop in which the model is built."""
TABLE_BYTES = 1 << 30
"""Largest size of the tables that a model may compute itself: causal masks, rotary frequencies."""
GENERATION_CONFIG = "generation_config.json"


def load_causal_lm(folder: Path, *, dtype: torch.dtype | None = None, device: torch.device, shares: int = 1) -> Any:
    """Loads the model in a folder, in evaluation mode; without `dtype` in its stored dtype, on the CPU in float32.

    Only the folder's own weights: an adapter beside them is ignored. Nothing is downloaded, and no code from the folder
    is run. ValueError for a quantised checkpoint, for one that lacks weights (transformers would fill them with random
    numbers) or has weights that the model does not use, for sizes in config.json far beyond the stored weights, and for
    a model whose tokens see later ones.

    `shares` > 1 is the number of processes, all of which must call this: each reads and keeps its part of every weight,
    frozen; a block's weights are whole in a process only while it computes with them (FSDP2).
    """
    from transformers import AutoModelForCausalLM

    require_causal_lm(folder)
    on_cpu = torch.float32 if device.type == "cpu" else "auto"
    with quiet():
        model, found = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype or on_cpu,
            local_files_only=True,
            trust_remote_code=False,
            adapter_kwargs=NO_ADAPTER,
            ignore_mismatched_sizes=True,  # they are told below
            output_loading_info=True,
            **_spread(shares),
        )
    with open_source(folder) as checkpoint:
        require_placed(folder, model, checkpoint, found)
        if shares == 1:
            _take_indexed(folder, model, checkpoint)
            model.to(device)
        else:  # frozen before the first pass, in which FSDP asks what trains
            model.requires_grad_(False)
    _require_causal(folder, model.eval())
    return model


def require_causal_lm(folder: Path) -> tuple[Any, Any]:
    """The model in a folder on the meta device, and its config; ValueError unless it is a causal language model."""
    _require_whole_model(folder)
    with open_source(folder) as checkpoint:  # refuses files that are missing, damaged, or more than tensors
        require_own_settings(checkpoint, folder / CONFIG_NAME)
        return _described(checkpoint, folder)


def _spread(shares: int) -> dict[str, Any]:
    """Arguments for transformers to load a model that several processes share."""
    if shares == 1:
        return {}
    try:
        from transformers.distributed import DistributedConfig
    except ImportError as e:
        raise ValueError("fsdp: this transformers cannot spread a model as it loads it; install 5.23 or newer") from e
    return {"distributed_config": DistributedConfig(fsdp_size=shares)}


def kept_dtype(folder: Path) -> torch.dtype | None:
    """bfloat16 if the checkpoint stores nothing else: training needs no more. Else None, `load_causal_lm`'s default."""
    with open_source(folder) as checkpoint:
        stored = {checkpoint.info(name).dtype for name in checkpoint.names if checkpoint.info(name).is_floating}
    return torch.bfloat16 if stored == {"BF16"} else None


def _require_whole_model(folder: Path) -> None:
    """ValueError for a folder without config.json, or with an adapter instead of weights."""
    if (folder / ADAPTER_CONFIG).is_file() and not any((folder / name).exists() for name in PREFERENCE):
        named = read_json(folder / ADAPTER_CONFIG)
        base = named.get("base_model_name_or_path") if isinstance(named, dict) else None
        raise ValueError(
            f"{folder}: an adapter alone, made for {base!r}; give that model, or one that the adapter was merged into"
        )
    if not (folder / CONFIG_NAME).is_file():
        raise ValueError(f"{folder}: no config.json, so no language model; give a folder that transformers saved")
    weights = next((name for name in PREFERENCE if (folder / name).is_file()), "")
    index = read_json(folder / weights) if weights.endswith(".json") else {"metadata": {}}
    if not (isinstance(index, dict) and isinstance(index.get("metadata"), dict)):
        raise ValueError(f"{folder / weights}: holds no mapping `metadata`, as transformers wants; download it again")


def require_own_settings(checkpoint: Checkpoint, path: Path) -> None:
    """ValueError if config.json refers to code or weights elsewhere, to quantised weights, or asks for endless loops.

    Checked before transformers reads it, since a config builds lists of any length that it states.
    """
    most = len(checkpoint.names)
    if any(checkpoint.quantisation(name) for name in checkpoint.names) or checkpoint.config.get("quantization_config"):
        raise ValueError(f"{path.parent}: quantised; adapters are built on the unquantised checkpoint of this model")
    for key, value in _settings(checkpoint.config):
        if key == "transformers_weights":
            raise ValueError(f"{path}: {key} names other weights, {value!r}; take that key out")
        if key.endswith("_implementation") and "/" in str(value):
            raise ValueError(f"{path}: {key} is {value!r}, code of another repository; take that key out")
        limit = most if LAYER_COUNT.fullmatch(key) else checkpoint.num_entries if COUNT.fullmatch(key) else None
        if limit is not None and isinstance(value, int) and value > limit:
            raise ValueError(
                f"{path}: {key} is {value:.4g}, and only {most} weights are stored; restore config.json or the weights"
            )


def _settings(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every setting of config.json, including those of its sections."""
    for key, value in config.items():
        yield key, value
        if isinstance(value, dict):
            yield from _settings(value)


@contextmanager
def describing(what: str, checkpoint: Checkpoint, path: Path | str) -> Iterator[None]:
    """Within the block, models are built without memory or random numbers, on the device "meta".

    CheckpointError if config.json, named `path`, describes no `what`.
    """
    try:
        with quiet(), torch.device("meta"), torch.random.fork_rng(devices=[]):
            yield
    except config_errors() as e:
        own_code = "auto_map" in checkpoint.config and "trust_remote_code" in str(e)
        reason = "it needs code of its own, which is never run" if own_code else " ".join(str(e).split())[:120]
        raise CheckpointError(
            f"{path}: describes no {what} that transformers knows (model_type "
            f"{checkpoint.config.get('model_type')!r}: {reason}); give another checkpoint"
        ) from e


def _described(checkpoint: Checkpoint, folder: Path) -> tuple[Any, Any]:
    """The model that config.json describes, built without memory, and its config.

    ValueError unless it is a causal language model of about the size of the stored weights.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    with describing("causal language model", checkpoint, folder / CONFIG_NAME):
        found = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model = AutoModelForCausalLM.from_config(found, trust_remote_code=False)
    if (folder / GENERATION_CONFIG).is_file():
        try:
            with quiet():
                GenerationConfig.from_pretrained(folder, local_files_only=True)
        except config_errors() as e:
            raise ValueError(f"{folder / GENERATION_CONFIG}: not what transformers reads ({e}); restore it") from e
    described = sum(p.numel() for p in model.parameters())
    # Twice: a few weights that are missing or of another shape are named after loading.
    if described > 2 * checkpoint.num_entries:
        raise ValueError(
            f"{folder / CONFIG_NAME}: describes {described} parameters, and {checkpoint.num_entries} are stored;"
            " restore config.json or download the weights again"
        )
    tables = sum(b.nbytes for b in model.buffers())
    if tables > TABLE_BYTES:
        raise ValueError(f"{folder / CONFIG_NAME}: asks for {tables} bytes of tables beside the weights; restore it")
    return model, found


def require_placed(folder: Path, model: Any, checkpoint: Checkpoint, found: Mapping[str, Any]) -> None:
    """ValueError, naming one, for weights that are missing, of another shape, or not used by the model."""
    for name, stored, wanted in sorted(found["mismatched_keys"]):
        raise ValueError(
            f"{folder}: {name} is {list(stored)}, config.json says {list(wanted)}; download the checkpoint again"
        )
    missing, kind = sorted(found["missing_keys"]), type(model).__name__
    unplaced = sorted(name for name in found["unexpected_keys"] if not _is_computed(name, checkpoint))
    if missing and not any(name.startswith(f"{model.base_model_prefix}.") for name in missing):
        raise ValueError(
            f"{folder}: stores no head that predicts words ({missing[0]} is missing), as encoders and bare trunks do;"
            " give a causal language model"
        )
    if missing and unplaced:
        raise ValueError(
            f"{folder}: {missing[0]} is missing ({len(missing)} weights in all), and {unplaced[0]} has no place in"
            f" {kind} ({len(unplaced)} in all); give the checkpoint under the names that transformers saves"
        )
    if missing:
        raise ValueError(f"{folder}: {missing[0]} is missing ({len(missing)} weights in all); download it again")
    if unplaced:
        raise ValueError(
            f"{folder}: {unplaced[0]} is stored and has no place in {kind} ({len(unplaced)} weights in all);"
            " correct config.json, or the output is another model's"
        )


@torch.no_grad()
def _take_indexed(folder: Path, model: Any, checkpoint: Checkpoint) -> None:
    """Loads the tensors that are in two shards from the shard that the index names; transformers takes the last one."""
    files = find_weights(folder)
    if len(files.shards) == 1:
        return
    places = model.state_dict()
    for name in repeated_names(list_tensors(folder / shard) for shard in files.shards):
        place = places.get(name, places.get(f"{model.base_model_prefix}.{name}"))
        stored = checkpoint.read(name)
        if place is None or place.shape != stored.shape:
            raise ValueError(f"{folder}: {name} is in two shards; leave it in the one that the index names")
        place.copy_(stored)


def _is_computed(name: str, checkpoint: Checkpoint) -> bool:
    """Whether a stored name is a buffer of an old version: by its name, or as a mask of a non-floating dtype."""
    stored = name in checkpoint.names and not checkpoint.info(name).is_floating
    return stored or COMPUTED.search(name) is not None


def unused_weights(folder: Path, model: Any) -> list[str]:
    """Stored names that this family does not use: old buffers, and layers that transformers leaves out (MTP)."""
    ignored = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]
    placed = model.state_dict().keys()
    with open_source(folder) as checkpoint:
        others = [name for name in checkpoint.names if name not in placed]
        return [n for n in others if _is_computed(n, checkpoint) or any(pattern.search(n) for pattern in ignored)]


@torch.no_grad()
def _require_causal(folder: Path, model: Any) -> None:
    """ValueError if a token changes the output at an earlier position, as in an encoder with a head.

    Also for settings that no weight shows to be wrong, such as more experts per token than experts: they fail when run.
    """
    ids = torch.arange(6, device=model.device).view(2, 3) % model.config.get_text_config().vocab_size
    ids[1, :2] = ids[0, :2]
    require_no_look_ahead(folder, model, lambda: model(input_ids=ids, use_cache=False).logits)


def require_no_look_ahead(folder: Path, model: Any, run: Callable[[], Tensor]) -> Tensor:
    """Checks that `run`, [2, tokens, dim] for two windows that differ only in their last token, is causal.

    ValueError if the outputs differ before the last token, and if the model does not run.
    """
    try:
        found = run()
    except torch.OutOfMemoryError:
        raise
    except config_errors() as e:
        reason = " ".join(str(e).split())[:120]
        raise ValueError(f"{folder / CONFIG_NAME}: describes a model that does not run ({reason}); restore it") from e
    first, second = found[:, 0].float()
    # Equal to rounding where nothing looks ahead, that of experts included.
    if (first - second).abs().max() > max(1e-3, 8 * torch.finfo(model.dtype).eps) * first.abs().max():
        raise ValueError(f"{folder}: {type(model).__name__} looks ahead, as encoders do; give a causal language model")
    return found


@contextmanager
def quiet() -> Iterator[None]:
    """Turns off progress bars and warnings of transformers and torch; important ones are reported by our own lines."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model's folder; nothing is downloaded, and no code from the folder is run.

    ValueError if there is none, or if it cannot be read.
    """
    from transformers import AutoTokenizer

    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            tokenizer.decode(tokenizer("a")["input_ids"])  # what is wrong with its settings shows in use
            return tokenizer
    except Exception as e:  # tokenizers raises Exception itself for a file that it cannot read
        pieces = next((p.name for p in sorted(folder.glob("*.model")) if find_spec("sentencepiece") is None), None)
        if pieces and not (folder / "tokenizer.json").is_file():
            raise ValueError(f"{folder}: {pieces} needs sentencepiece; pip install sentencepiece") from e
        reason = " ".join(str(e).split())[:120]
        raise ValueError(f"{folder}: no tokenizer that can be read ({reason}); restore its tokenizer files") from e


def trunk_of(model: Any) -> Any:
    """The model without its output head, for callers that need only activations."""
    return model.base_model
