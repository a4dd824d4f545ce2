"""Token ids that a caller gives, in any usual form, as windows."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from subspacelab.core.errors import SettingError
from subspacelab.data.windows import Windows

Tokens = Windows | Int[Tensor, "n length"] | Iterable[Any]
"""Text as token ids: one tensor, a list of windows, or batches of a data loader, tensors or mappings with `input_ids`
(and, where there is padding, `attention_mask`)."""
WANTED = "give a tensor [n, length] of integers, a list of windows, or batches with `input_ids`"


def as_windows(windows: Tokens) -> Windows:
    """Token ids in any form of `Tokens` as windows; shorter ones are padded on the right and masked."""
    if isinstance(windows, Windows):
        return windows
    one = isinstance(windows, Tensor | Mapping) or not isinstance(windows, Iterable)
    rows = [row for batch in ([windows] if one else windows) for row in _rows(batch)]
    if not rows or not all(len(row) for row in rows):
        raise SettingError(f"windows: no token ids; {WANTED}")
    pad = torch.nn.utils.rnn.pad_sequence
    mask = pad([torch.ones(len(row), dtype=torch.bool) for row in rows], batch_first=True)
    return Windows(pad(rows, batch_first=True), mask)


def _rows(batch: Any) -> list[Tensor]:
    """The tokens of each window of a batch [n, length], or of a single one [length], without padding."""
    named = batch if isinstance(batch, Mapping) else {"input_ids": batch}
    try:
        ids = torch.as_tensor(named["input_ids"])
        given = named.get("attention_mask")
        mask = torch.ones_like(ids) if given is None else torch.as_tensor(given)
    except (LookupError, TypeError, ValueError, RuntimeError) as e:
        raise SettingError(f"windows: no token ids in a {type(batch).__name__} ({e}); {WANTED}") from e
    if ids.ndim not in (1, 2) or ids.dtype.is_floating_point or ids.dtype.is_complex or mask.shape != ids.shape:
        said = f"ids {ids.dtype} {list(ids.shape)}, mask {list(mask.shape)}"
        raise SettingError(f"windows: no token ids with their mask ({said}); {WANTED}")
    pairs = zip(torch.atleast_2d(ids), torch.atleast_2d(mask.bool()), strict=True)
    return [row[kept].cpu().long() for row, kept in pairs]
