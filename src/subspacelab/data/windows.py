"""Documents as token ids, cut into windows of one length, for calibration and evaluation."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True)
class Windows:
    """Token ids in windows of one length."""

    input_ids: Int[Tensor, "n length"]
    """Token ids; 0 where the mask is false."""
    attention_mask: Bool[Tensor, "n length"]
    """False on padding, which occurs only if the text is shorter than one window."""
    shortage: str = ""
    """If the text had too few tokens: how many there were and how many were requested; else empty."""
    prefix: tuple[str, ...] = ()
    """Names of the tokens at the start of each window, which the tokenizer puts before a text."""

    @property
    def num_tokens(self) -> int:
        """Number of tokens without padding."""
        return int(self.attention_mask.sum())


def token_windows(
    documents: Sequence[Sequence[int]], *, num_windows: int, seq_len: int, seed: int, separator: int | None
) -> Windows:
    """`cut_windows` of the documents, joined in their order."""
    return cut_windows([join(documents, separator)], num_windows=num_windows, seq_len=seq_len, seed=seed)


def join(documents: Iterable[Sequence[int]], separator: int | None) -> list[int]:
    """The tokens of all non-empty documents, each followed by `separator` if there is one."""
    ending = [] if separator is None else [separator]
    return [token for document in documents if document for token in [*document, *ending]]


def cut_windows(
    stretches: Sequence[Sequence[int]], *, num_windows: int, seq_len: int, seed: int, prefix: Sequence[int] = ()
) -> Windows:
    """Draws `num_windows` windows of `seq_len` tokens that do not overlap, in an order drawn from `seed`.

    Each stretch is cut from its start; every window begins with `prefix`, which counts towards its length. With too few
    tokens there are fewer windows, and `shortage` says so; with too few for one window, that window is padded on the
    right. ValueError if there is no token at all, or if a size is too small.
    """
    for name, value, least in (("num_windows", num_windows, 1), ("seq_len", seq_len, len(prefix) + 1)):
        if value < least:
            raise ValueError(f"{name}: {value} must be at least {least}")
    length, total = seq_len - len(prefix), sum(map(len, stretches))
    if not total:
        raise ValueError("no token in the text; give one that is not empty")
    cut = torch.cat([torch.tensor(s[: len(s) // length * length]).long().view(-1, length) for s in stretches])
    shortage = ""
    if len(cut) < num_windows:
        asked = f"{num_windows} x {length} = {num_windows * length} were asked for"
        shortage = f"the text has {total} tokens, {asked}; {max(1, len(cut))} windows are taken"
    order = torch.randperm(len(cut), generator=torch.Generator().manual_seed(seed))[:num_windows]
    mask = torch.ones(max(1, len(order)), seq_len, dtype=torch.bool)
    if len(cut):
        body = cut[order]
    else:
        rest = torch.tensor(max(stretches, key=len))
        body = torch.nn.functional.pad(rest, (0, length - len(rest)))[None]
        mask[0, len(prefix) + len(rest) :] = False
    front = torch.tensor(prefix).long().expand(len(body), -1)
    return Windows(torch.cat([front, body], 1), mask, shortage)
