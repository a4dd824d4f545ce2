"""A checkpoint whose weights are decomposed as they are read: no factors on disk."""

from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from subspacelab.checkpoints import Checkpoint, canonical_name, tensor_digest
from subspacelab.rotation.plan import Part, Selection, make_plan


@dataclass(frozen=True)
class StreamedWeight:
    """What is known of a weight before it is read."""

    part: Part
    """Where its entries are."""
    original_shape: tuple[int, ...]
    """Shape of the stored tensor."""
    storage_dtype: str
    """Type of the stored entries, as safetensors names it."""
    is_full: bool = True
    """All singular triples are computed."""

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """Shape of the matrix that is decomposed."""
        return self.part.shape

    @property
    def rank(self) -> int:
        """Number of singular triples."""
        return min(self.part.shape)


@dataclass(frozen=True)
class Streamed:
    """A checkpoint of a chain, read matrix by matrix; its counterpart on disk is `factors.Decomposition`."""

    checkpoint: Checkpoint
    """What is read."""
    weights: dict[str, StreamedWeight]
    """Canonical name to what is known of the weight."""

    @classmethod
    def of(cls, checkpoint: Checkpoint, selection: Selection) -> "Streamed":
        """The matrices of `checkpoint` that are wanted, by the rules and with the errors of `plan.make_plan`."""
        weights = {}
        for part in make_plan(checkpoint, rank=None, selection=selection).parts.values():
            info = checkpoint.info(part.key)
            weights[canonical_name(part.weight)] = StreamedWeight(part, info.shape, info.dtype)
        return cls(checkpoint, weights)

    @property
    def source(self) -> dict[str, str | None]:
        """Reference and revision; of an absolute path the name alone, as it is of one machine only."""
        source = self.checkpoint.source
        reference = source.name if Path(source.reference).is_absolute() else source.reference
        return {"reference": reference, "revision": source.revision}

    @property
    def folder(self) -> Path | None:
        """Where it lies on this disk, if it does and is not a copy of the hub's."""
        source = self.checkpoint.source
        return source.folder if source.revision is None and source.folder.exists() else None

    def read(self, name: str) -> tuple[Float[Tensor, "m n"], str]:
        """The stored entries of a weight as a matrix, and their SHA-256; ValueError, naming it, for NaN or Inf."""
        part = self.weights[name].part
        tensor = part.read_sound(self.checkpoint)
        return tensor.reshape(part.shape), tensor_digest(tensor)
