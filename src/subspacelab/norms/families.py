"""What is known of a family of models: its parts, how many norm layers they have, its embeddings."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

EmbeddingKind = Literal["token", "position", "token type", "patch", "class token", "register", "expert router", "other"]
"""What is embedded; only tokens are words of the tokenizer, and a kind is compared with itself alone."""

Section = Mapping[str, Any]
"""config.json, or a section of it."""


@dataclass(frozen=True)
class Extra:
    """Norm layers that a model has only where its config says so."""

    keys: tuple[str, ...]
    """Keys of the tower's section, the first that is there decides; truthy means present."""
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
    """text, vision, projector, encoder or decoder."""
    root: str
    """Regular expression that the canonical names of its weights begin with."""
    norm_type: str
    """RMSNorm or LayerNorm; a file that says otherwise is believed, with a warning."""
    per_block: int
    """Norm layers in each block."""
    outside: int = 1
    """Norm layers before, after and beside the blocks."""
    section: str = ""
    """Section of config.json that describes it; what is not there is looked for at the top."""
    depth_keys: tuple[str, ...] = ("num_hidden_layers",)
    """Keys that hold the number of blocks; the first that is there counts."""
    default_depth: int | None = None
    """The number of blocks when config.json leaves it out, as this family's code has it."""
    extras: tuple[Extra, ...] = ()
    """Norm layers that some models of the family have."""
    more: Callable[[Section, int], int] | None = None
    """Of families whose blocks differ: how many more there are, by the section and the number of blocks."""
    uncounted: str | None = None
    """Regular expression of norm layers that are in some files of one and the same model only."""
    predicts_ahead: bool = False
    """Whether files may hold blocks beyond the model's, which predict tokens ahead (MTP); they are not counted."""
    biases: bool = True
    """Whether its LayerNorms have biases; of those without the file alone would say RMSNorm."""
    follows: bool = False
    """Whether it is whatever the `model_type` of its section says, and this only where that is unknown."""


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
    towers: tuple[Tower, ...]
    """Its parts."""
    also: tuple[str, ...] = ()
    """Every other `model_type` that means this family."""
    kinds: tuple[EmbeddingKind, ...] = ()
    """Kinds of its embeddings, which are found by their usual names."""
    embeddings: tuple[EmbeddingName, ...] = ()
    """Its embeddings, where usual names do not do; none for SigLIP, of which the norm layers alone are studied."""
    signature: tuple[str, ...] = ()
    """Regular expressions of canonical names, all of which are there, when config.json says nothing; none: unknown."""
    absent: tuple[str, ...] = ()
    """And of names none of which is there."""
    all_norms: bool = False
    """Whether all norm layers are reported by default, not only the embedding-related ones."""

    @property
    def model_types(self) -> tuple[str, ...]:
        """Every `model_type` that means this family."""
        return (self.name, *self.also)


def value_of(config: Section, section: str, key: str, missing: Any = None) -> Any:
    """What the section of a config says, else its top level; `missing` where neither does."""
    inner = config.get(section)
    if section and isinstance(inner, Mapping) and key in inner:
        return inner[key]
    return config.get(key, missing)
