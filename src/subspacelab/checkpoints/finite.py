"""Refuses NaN and infinity by the tensor's name, before they reach a decomposition."""

import torch
from torch import Tensor

CHUNK_ENTRIES = 1 << 20
"""Entries looked at in one go: 4 MB in float32, whatever the size of the tensor."""


def require_finite(name: str, tensor: Tensor) -> None:
    """ValueError naming `name` and counting its NaN and infinite entries, if it has any; [any shape]."""
    nans = infs = 0
    rows = tensor.reshape(1) if tensor.ndim == 0 else tensor
    num_rows = max(1, CHUNK_ENTRIES // max(1, rows[:1].numel()))
    for chunk in rows.split(num_rows):
        if not torch.isfinite(chunk).all():
            nans += int(torch.isnan(chunk).sum())
            infs += int(torch.isinf(chunk).sum())
    if nans or infs:
        raise ValueError(
            f"{name}: {nans} NaN and {infs} infinite of {tensor.numel()} entries; "
            "the checkpoint is damaged: download or train it again, or leave this weight out"
        )
