"""What is known of a model family: its towers, their numbers of norm layers, its embeddings."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

EmbeddingKind = Literal["token", "position", "token type", "patch", "class token", "register", "expert router", "other"]
"""What the vectors embed. Only tokens are entries of the tokenizer; kinds are compared only with themselves."""

Section = Mapping[str, Any]
"""config.json, or a section of it."""


@dataclass(frozen=True)
class Extra:
    """Norm layers that a model has only if its config says so."""

    keys: tuple[str, ...]
    """Keys in the tower's section; the first that exists decides, and a true value means present."""
    per_block: int = 0
    """Number of additional norm layers in each block."""
    outside: int = 0
    """Number of additional norm layers outside the blocks."""
    default: bool = False
    """The value if config.json has none of the keys."""


@dataclass(frozen=True)
class Tower:
    """A stack of blocks, or a connector between two stacks, and its number of norm layers."""

    name: str
    """text, vision, projector, encoder or decoder."""
    root: str
    """Regular expression for the beginning of its weights' canonical names."""
    norm_type: str
    """RMSNorm or LayerNorm; if the file differs, the file is right, and a warning says so."""
    per_block: int
    """Number of norm layers in each block."""
    outside: int = 1
    """Number of norm layers before, after and beside the blocks."""
    section: str = ""
    """Section of config.json that describes it; missing keys are looked up at the top level."""
    depth_keys: tuple[str, ...] = ("num_hidden_layers",)
    """Keys that hold the number of blocks; the first that exists counts."""
    default_depth: int | None = None
    """Number of blocks if config.json does not give it, as in the code of the family."""
    extras: tuple[Extra, ...] = ()
    """Norm layers that some models of the family have."""
    more: Callable[[Section, int], int] | None = None
    """For families whose blocks differ: number of additional norm layers, from the section and the number of blocks."""
    uncounted: str | None = None
    """Regular expression for norm layers that only some files of the same model contain."""
    predicts_ahead: bool = False
    """Whether files may hold additional blocks that predict tokens ahead (MTP); they are not counted."""
    biases: bool = True
    """Whether its LayerNorms have biases; without biases the file alone would suggest RMSNorm."""
    follows: bool = False
    """Whether the `model_type` of its section decides what the tower is; this row is used if that type is unknown."""


@dataclass(frozen=True)
class EmbeddingName:
    """The stored name of an embedding."""

    kind: EmbeddingKind
    """What the vectors embed."""
    pattern: str
    """Regular expression for the whole canonical name."""
    continues: str | None = None
    """Canonical name of the embedding whose ids this one continues."""


@dataclass(frozen=True)
class Family:
    """A row of the table."""

    name: str
    """The usual `model_type` of the family in config.json."""
    label: str
    """Common name of the family."""
    towers: tuple[Tower, ...]
    """The towers of its models."""
    also: tuple[str, ...] = ()
    """Other `model_type` values of this family."""
    kinds: tuple[EmbeddingKind, ...] = ()
    """Kinds of embeddings that are found by their usual names."""
    embeddings: tuple[EmbeddingName, ...] = ()
    """Embeddings with unusual names; none for SigLIP, of which only the norm layers are studied."""
    signature: tuple[str, ...] = ()
    """Regular expressions that must all match some canonical name, used if config.json says nothing; empty: not
    detectable."""
    absent: tuple[str, ...] = ()
    """Regular expressions that must match no canonical name."""
    all_norms: bool = False
    """Whether all norm layers are reported by default, not only those related to embeddings."""

    @property
    def model_types(self) -> tuple[str, ...]:
        """All `model_type` values of this family."""
        return (self.name, *self.also)


def value_of(config: Section, section: str, key: str, missing: Any = None) -> Any:
    """The value in the section of a config, or else at its top level, or else `missing`."""
    inner = config.get(section)
    if section and isinstance(inner, Mapping) and key in inner:
        return inner[key]
    return config.get(key, missing)
