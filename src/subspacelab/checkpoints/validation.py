"""Files of others before they are believed, weights before they are used."""

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
"""Of an index, a config or a tokenizer: the largest on the hub have some 20 MB."""


def require_payload(path: Path) -> None:
    """ValueError if the file is empty, a git-LFS pointer instead of the file it stands for, or no file to be read."""
    if not stat.S_ISREG(path.stat().st_mode):  # before it is opened: a pipe would wait, a device never ends
        raise CheckpointError(f"{path}: not a regular file; put the file itself there")
    with path.open("rb") as f:
        head = f.read(len(LFS_HEAD))
    if not head:
        raise CheckpointError(f"{path}: empty file; download it again")
    if head == LFS_HEAD:
        raise CheckpointError(f"{path}: a git-LFS pointer, not the file itself; run `git lfs pull` in its repository")


def read_checked(path: Path, schema: TypeAdapter[T], what: str) -> T:
    """The JSON in a file by its schema; ValueError, naming the file and the key, if it is not `what`."""
    require_payload(path)
    if path.stat().st_size > MAX_JSON_BYTES:
        raise CheckpointError(f"{path}: {path.stat().st_size} bytes, more than {what} has; restore it")
    return checked_json(path.read_bytes(), schema, str(path), what, "restore it")


def checked_json(text: bytes | bytearray, schema: TypeAdapter[T], place: str, what: str, remedy: str) -> T:
    """The JSON of a `place` by the schema of `what` it is to be; else a ValueError of one line.

    Numbers are no texts and texts no numbers. The line names the innermost key that is wrong; it comes for text that
    is no JSON or no UTF-8, and for nesting without end, too.
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
"""Entries looked at in one go: 4 MB in float32, whatever the size of the tensor."""


def require_finite(name: str, tensor: Tensor) -> None:
    """ValueError naming `name` if it is of another type than 16, 32 or 64-bit floats, or counting its NaN and infinite
    entries, if it has any; [any shape]."""
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
"""A tensor `<layer><suffix>` beside a layer's others says that the layer is quantised, and how."""

SIDE_SUFFIXES = (
    *MARKERS,
    *(".qzeros", ".g_idx", ".scales", ".weight_shape", ".weight_zero_point", ".weight_g_idx"),
    *(".weight_scale_2", ".input_scale", ".weight_format"),
    *(".weight.quant_map", ".weight.nested_absmax", ".weight.nested_quant_map"),
)
"""Codes, scales and tables of a quantised layer: some of them floating and two-dimensional."""

CODE_DTYPES = ("I8", "U8", "I16", "U16", "I32", "U32")
"""Integers that quantisation packs codes in; I64 and BOOL are buffers."""


def quantisation(name: str, dtype: str, names: Container[str], config: Mapping[str, Any]) -> str | None:
    """The quantisation method that the tensor `name` is part of, or None if its entries mean themselves.

    Decided per tensor: norms and embeddings of a quantised checkpoint are usually floating and pass.
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
    """The layer that a weight or a side tensor belongs to; None for anything else (a bias, a buffer)."""
    if ".weight.quant_state." in name:
        return name.partition(".weight.quant_state.")[0]
    for suffix in (*SIDE_SUFFIXES, ".weight"):
        if name.endswith(suffix):
            return name.removesuffix(suffix)
    return None


def _configured_method(config: Mapping[str, Any]) -> str | None:
    """`quant_method` of the quantization_config at the top of config.json or in its text_config."""
    for part in (config, config.get("text_config")):
        if isinstance(part, Mapping) and isinstance(part.get("quantization_config"), Mapping):
            return str(part["quantization_config"].get("quant_method", "unnamed method"))
    return None
