"""What is known of a model family: its parts, its norm layers, its embeddings, and what tells it from others."""

from dataclasses import dataclass
from typing import Literal

EmbeddingKind = Literal["token", "position", "token type", "patch", "class token", "register", "expert router", "other"]
"""What is embedded; only tokens are words of the tokenizer, and a kind is compared with itself alone."""


@dataclass(frozen=True)
class Extra:
    """Norm layers that a model has only where its config says so."""

    keys: tuple[str, ...]
    """Dotted keys of config.json, the first that is there decides; truthy means present."""
    per_block: int = 0
    """How many more in each block."""
    outside: int = 0
    """How many more outside the blocks."""
    default: bool = False
    """What holds when config.json has none of the keys."""


@dataclass(frozen=True)
class Tower:
    """A stack of blocks, or what joins two of them, and how many norm layers it has."""

    name: str
    """text, vision or projector."""
    root: str
    """Regular expression that the canonical names of its weights begin with."""
    norm_type: str
    """RMSNorm or LayerNorm; a file that says otherwise is believed, with a warning."""
    per_block: int
    """Norm layers in each block."""
    outside: int
    """Norm layers before, after and beside the blocks."""
    depth_keys: tuple[str, ...] = ()
    """Dotted keys of config.json that hold the number of blocks; the first that is there counts."""
    default_depth: int | None = None
    """The number of blocks when config.json leaves it out, as this family's code has it."""
    extras: tuple[Extra, ...] = ()
    """Norm layers that some models of the family have."""


@dataclass(frozen=True)
class EmbeddingName:
    """Where an embedding is stored."""

    kind: EmbeddingKind
    """What is embedded."""
    pattern: str
    """Regular expression of the whole canonical name."""
    continues: str | None = None
    """Canonical name of the embedding whose last id is followed by this one's first."""


@dataclass(frozen=True)
class Family:
    """A row of the table."""

    name: str
    """The `model_type` of config.json, the usual one of the family."""
    label: str
    """What people call it."""
    model_types: tuple[str, ...]
    """Every `model_type` that means this family."""
    architectures: tuple[str, ...]
    """Class names in `architectures` that mean it, where there is no model_type."""
    signature: tuple[str, ...]
    """Regular expressions of canonical names, all of which are there, when config.json says nothing."""
    absent: tuple[str, ...]
    """And of names none of which is there."""
    towers: tuple[Tower, ...]
    """Its parts."""
    embeddings: tuple[EmbeddingName, ...] = ()
    """Its embeddings; none for SigLIP, of which the norm layers alone are studied."""
    all_norms: bool = False
    """Whether all norm layers are reported by default, not only the embedding-related ones."""
