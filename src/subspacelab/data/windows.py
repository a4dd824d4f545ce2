"""Documents as token ids cut into windows of one length, for calibration and for measuring drift."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True)
class Windows:
    """Equally long stretches of token ids."""

    input_ids: Int[Tensor, "n length"]
    """Token ids; 0 where the mask is false."""
    attention_mask: Bool[Tensor, "n length"]
    """False on padding, which only a text shorter than one window has."""
    shortage: str = ""
    """Says how many tokens there were and how many were asked for, if there were too few; else empty."""

    @property
    def num_tokens(self) -> int:
        """Tokens that are not padding."""
        return int(self.attention_mask.sum())


def token_windows(
    documents: Sequence[Sequence[int]], *, num_windows: int, seq_len: int, seed: int, separator: int | None
) -> Windows:
    """Draws `num_windows` windows of `seq_len` tokens that do not overlap, in an order drawn from `seed`.

    The documents are joined in their order, `separator` after each if there is one, and cut from the start. With
    fewer tokens than asked for there are fewer windows, and `shortage` says so; with less than one window's, that one
    is padded on the right. ValueError when there is no token at all, or a size is below 1.
    """
    for name, value in (("num_windows", num_windows), ("seq_len", seq_len)):
        if value < 1:
            raise ValueError(f"{name}: {value} must be at least 1")
    ending = [] if separator is None else [separator]
    ids = torch.tensor([token for document in documents if document for token in [*document, *ending]])
    if not len(ids):
        raise ValueError(f"no token in {len(documents)} documents; give a text that is not empty")
    shortage = ""
    if len(ids) < num_windows * seq_len:
        asked = f"{num_windows} x {seq_len} = {num_windows * seq_len} were asked for"
        shortage = f"the text has {len(ids)} tokens, {asked}; {max(1, len(ids) // seq_len)} windows are taken"
    if len(ids) < seq_len:
        mask = torch.arange(seq_len) < len(ids)
        return Windows(torch.nn.functional.pad(ids, (0, seq_len - len(ids)))[None], mask[None], shortage)
    cut = ids[: len(ids) // seq_len * seq_len].view(-1, seq_len)
    order = torch.randperm(len(cut), generator=torch.Generator().manual_seed(seed))[:num_windows]
    return Windows(cut[order], torch.ones(len(order), seq_len, dtype=torch.bool), shortage)
