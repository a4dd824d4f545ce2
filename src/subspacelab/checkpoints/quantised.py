"""Tells stored numbers that are weights from numbers that are codes of weights, tensor by tensor."""

from collections.abc import Container, Mapping
from typing import Any

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
    if marks:
        return configured or marks[0]
    if dtype.startswith(("F8_", "F6_", "F4", "FLOAT", "Q")):
        return configured or f"{dtype} without its scale"
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
