"""The general rule: which one-dimensional tensors are the parameters of norm layers, told by their names alone."""

import re
from dataclasses import dataclass

NORM = re.compile(r"norm|layrnorm|^(?:\w+_)?ln\d*(?:_\w+)?$|_(?:bn|rms)$", re.IGNORECASE)
"""The last part of a norm layer's name: also ln_q, ln_f, pre_ln, and CLIP's misspelt pre_layrnorm."""

SCALES = {"weight": "bias", "gamma": "beta"}
"""Leaf name of a scale -> of the bias beside it; the second pair is that of checkpoints from TensorFlow."""

BLOCK = re.compile(r"(?:^|\.)(?:layers?|blocks?|resblocks|h)\.(\d{1,9})(?=\.)")
INNER = ("q_norm", "k_norm", "q_layernorm", "k_layernorm", "q_a_layernorm", "kv_a_layernorm")
"""Norms within an attention: they read projections, not the stream that the embedding begins."""


@dataclass(frozen=True)
class NormName:
    """What the canonical name of a norm layer's scale says."""

    layer: str
    """The name of the layer: without `.weight`."""
    bias: str
    """The name its bias has, if it has one."""
    block: int | None
    """Index of the block it is in; None outside the blocks."""
    kind: str
    """The layer's name with `{}` for the block index: layers of one kind make a curve over depth."""

    @property
    def reads_embedding(self) -> bool:
        """Whether it reads the embedding stream at its beginning or end: outside the blocks, or in block 0."""
        return self.block is None or (self.block == 0 and self.layer.rpartition(".")[2] not in INNER)


def parse_norm(name: str, num_dims: int) -> NormName | None:
    """The norm layer whose scale is stored as `name`; None for any other tensor.

    A norm's scale is one-dimensional, its leaf is `weight`, and the part before says norm (trailing indices, as in
    `norms.0`, are skipped). What it misses: nameless members of a Sequential, BatchNorms called identity.
    """
    layer, _, leaf = name.rpartition(".")
    if num_dims != 1 or leaf not in SCALES:
        return None
    part = re.sub(r"(?:\.\d+)+$", "", layer).rpartition(".")[2]
    if not NORM.search(part):
        return None
    block, kind = split_block(layer)
    return NormName(layer, f"{layer}.{SCALES[leaf]}", block, kind)


def split_block(name: str) -> tuple[int | None, str]:
    """The index of the block that a name lies in, None outside the blocks, and the name with `{}` in its place."""
    found = BLOCK.search(name)
    if found is None:
        return None, name
    return int(found[1]), f"{name[: found.start(1)]}{{}}{name[found.end(1) :]}"
