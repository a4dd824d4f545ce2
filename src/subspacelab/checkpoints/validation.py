"""Checks of files from outside before they are used, and of weights before they are computed with."""

import stat
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from subspacelab.checkpoints.tensors import FP8
from subspacelab.core.errors import CheckpointError

T = TypeVar("T")
LFS_HEAD = b"version https://git-lfs"
MAX_JSON_BYTES = 1 << 30
"""Largest size of an index, config or tokenizer file; the largest on the hub have about 20 MB."""


def require_payload(path: Path) -> None:
    """ValueError if the file is empty, a git-LFS pointer, or not a regular file."""
    if not stat.S_ISREG(path.stat().st_mode):  # before it is opened: a pipe would wait, a device never ends
        raise CheckpointError(f"{path}: not a regular file; put the file itself there")
    with path.open("rb") as f:
        head = f.read(len(LFS_HEAD))
    if not head:
        raise CheckpointError(f"{path}: empty file; download it again")
    if head == LFS_HEAD:
        raise CheckpointError(f"{path}: a git-LFS pointer, not the file itself; run `git lfs pull` in its repository")


def read_checked(path: Path, schema: TypeAdapter[T], what: str) -> T:
    """The JSON in a file, checked by its schema; ValueError, naming file and key, if it is not a valid `what`."""
    require_payload(path)
    if path.stat().st_size > MAX_JSON_BYTES:
        raise CheckpointError(f"{path}: {path.stat().st_size} bytes, more than {what} has; restore it")
    return checked_json(path.read_bytes(), schema, str(path), what, "restore it")


def checked_json(text: bytes | bytearray, schema: TypeAdapter[T], place: str, what: str, remedy: str) -> T:
    """The JSON text from `place`, checked by the schema of `what`; ValueError, in one line, if it does not fit.

    Numbers and texts are not converted into each other. The line names the innermost wrong key. Text that is not JSON
    or not UTF-8, and endless nesting, are reported in the same way.
    """
    try:
        return schema.validate_json(text, strict=True)
    except ValidationError as e:
        worst = max(e.errors(include_url=False, include_input=False), key=lambda error: len(error["loc"]))
        keys = [str(key) for key in worst["loc"] if "[" not in str(key)]  # pydantic puts the branches of a union there
        where = f"{'.'.join(keys)}: " if keys else ""
        wanted = "valid JSON" if worst["type"] == "json_invalid" else what
        raise CheckpointError(f"{place}: not {wanted} ({where}{worst['msg']}); {remedy}") from e


CHUNK_ENTRIES = 1 << 20
"""Entries checked per step: 4 MB in float32, whatever the size of the tensor."""


def require_finite(name: str, tensor: Tensor) -> None:
    """ValueError, naming `name`, if its dtype is not a 16, 32 or 64-bit float; [any shape].

    Also if it has NaN or infinite entries, with their numbers.
    """
    if tensor.dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        raise CheckpointError(
            f"{name}: {str(tensor.dtype).removeprefix('torch.')}, needed are floats of 16, 32 or 64 bits"
        )
    nans = infs = 0
    rows = tensor.reshape(1) if tensor.ndim == 0 else tensor
    num_rows = max(1, CHUNK_ENTRIES // max(1, rows[:1].numel()))
    for chunk in rows.split(num_rows):
        if not torch.isfinite(chunk).all():
            nans += int(torch.isnan(chunk).sum())
            infs += int(torch.isinf(chunk).sum())
    if nans or infs:
        raise CheckpointError(
            f"{name}: {nans} NaN and {infs} infinite of {tensor.numel()} entries; "
            "the checkpoint is damaged: download or train it again, or leave this weight out"
        )


MARKERS = {
    ".weight_scale_inv": "fp8",
    ".weight_scale": "scaled low precision",
    ".weight_packed": "compressed-tensors",
    ".weight.absmax": "bitsandbytes",
    ".SCB": "bitsandbytes",
    ".qweight": "gptq or awq",
}
"""Suffix -> method: a tensor `<layer><suffix>` beside the other tensors of a layer shows that the layer is
quantised."""

SIDE_SUFFIXES = (
    *MARKERS,
    *(".qzeros", ".g_idx", ".scales", ".weight_shape", ".weight_zero_point", ".weight_g_idx"),
    *(".weight_scale_2", ".input_scale", ".weight_format"),
    *(".weight.quant_map", ".weight.nested_absmax", ".weight.nested_quant_map"),
)
"""Suffixes of codes, scales and tables of a quantised layer, some of them floating-point and two-dimensional."""

CODE_DTYPES = ("I8", "U8", "I16", "U16", "I32", "U32")
"""Integer dtypes that quantisation packs codes in; I64 and BOOL are buffers."""


def quantisation(name: str, dtype: str, names: Container[str], config: Mapping[str, Any]) -> str | None:
    """The quantisation method of the tensor `name`; None if its entries are the weights themselves.

    Decided per tensor: the norms and embeddings of a quantised checkpoint are usually floating-point and accepted.
    """
    layer = _layer_of(name)
    marks = [method for suffix, method in MARKERS.items() if layer is not None and layer + suffix in names]
    configured = _configured_method(config)
    if marks or dtype in FP8:
        return configured or ("fp8" if dtype in FP8 else marks[0])
    if dtype.startswith(("F8_", "F6_", "F4", "FLOAT", "Q")):
        return configured or dtype
    if dtype in CODE_DTYPES and (configured or name.endswith(".weight")):
        return configured or "integer codes"
    return None


def _layer_of(name: str) -> str | None:
    """The layer that a weight or a side tensor belongs to; None for anything else, such as a bias or a buffer."""
    if ".weight.quant_state." in name:
        return name.partition(".weight.quant_state.")[0]
    for suffix in (*SIDE_SUFFIXES, ".weight"):
        if name.endswith(suffix):
            return name.removesuffix(suffix)
    return None


def _configured_method(config: Mapping[str, Any]) -> str | None:
    """`quant_method` from the quantization_config at the top of config.json or in its text_config."""
    for part in (config, config.get("text_config")):
        if isinstance(part, Mapping) and isinstance(part.get("quantization_config"), Mapping):
            return str(part["quantization_config"].get("quant_method", "unnamed method"))
    return None
