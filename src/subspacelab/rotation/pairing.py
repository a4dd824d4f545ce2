"""Two checkpoints of one model: every tensor of the tuned one with its counterpart in the base."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from subspacelab.checkpoints import Checkpoint, Weights, canonical_name, open_checkpoint, require_finite
from subspacelab.checkpoints.tensors import canonical_keys
from subspacelab.core.errors import CheckpointError
from subspacelab.linalg.update_parts import UpdateParts
from subspacelab.rotation.plan import Part, Selection, make_plan


@dataclass(frozen=True)
class Pair:
    """A checkpoint and its tuned version, read one tensor at a time; made by `open_pair`."""

    base: Checkpoint
    """The checkpoint before training."""
    tuned: Checkpoint
    """The checkpoint after training."""
    partners: dict[str, str]
    """Key in the tuned checkpoint -> key of the same tensor, in the same shape, in the base."""
    unmatched: dict[str, str]
    """Key of each other tensor in the tuned checkpoint -> the reason."""
    matrices: dict[str, list[Part]]
    """Key in the tuned checkpoint -> its matrices: one, or one per fused expert."""
    kept: dict[str, list[UpdateParts]] | None = field(default=None, repr=False)
    """Updates that were read; None if they are not kept."""

    def read(self, key: str) -> tuple[Tensor, Tensor]:
        """A tensor before and after training, as stored; ValueError, naming it, for NaN, Inf and quantised entries."""
        found = []
        for checkpoint, name in ((self.base, self.partners[key]), (self.tuned, key)):
            checkpoint.require_floating(name)
            found.append(checkpoint.read(name))
            require_finite(f"{checkpoint.source.reference}: {name}", found[-1])
        return found[0], found[1]

    def updates(self, key: str, device: torch.device) -> list[UpdateParts]:
        """The update of each matrix of a tensor, in the order of `matrices`."""
        if self.kept is not None and key in self.kept:
            return self.kept[key]
        parts = self.matrices[key]
        before, after = (t.reshape(len(parts), *parts[0].shape).to(device) for t in self.read(key))
        found = [UpdateParts(a, b) for a, b in zip(before, after, strict=True)]
        if self.kept is not None:
            self.kept[key] = found
        return found

    def is_floating(self, key: str) -> bool:
        """Whether a tensor holds floating-point numbers, which training changes, rather than indices."""
        return self.tuned.info(key).is_floating

    @property
    def sources(self) -> dict[str, dict[str, Any]]:
        """`base` and `tuned` -> reference and revision; for an absolute path only its name."""
        return {"base": source_record(self.base), "tuned": source_record(self.tuned)}


def source_record(checkpoint: Checkpoint) -> dict[str, Any]:
    """Reference and revision; for an absolute path, which belongs to one machine, only its name."""
    source = checkpoint.source
    absolute = source.reference.startswith("/")
    return {"reference": source.name if absolute else source.reference, "revision": source.revision}


def open_pair(base: Weights, tuned: Weights, *, selection: Selection | None = None, keep: bool = False) -> Pair:
    """Opens both checkpoints and matches their tensors by canonical names; reads headers only.

    With `keep`, updates and their decompositions stay in memory, for several parts of one small pair. ValueError, in
    one line, for a checkpoint that cannot be opened or is quantised, and if no matrix is in both.
    """
    before, after = open_checkpoint(base, whole=True), open_checkpoint(tuned, whole=True)
    known = canonical_keys(before.names)
    partners: dict[str, str] = {}
    unmatched: dict[str, str] = {}
    for key in after.names_in_file_order():
        own = known.get(canonical_name(key))
        shape = after.info(key).shape
        if own is None:
            unmatched[key] = "not in the base"
        elif before.info(own).shape != shape:
            unmatched[key] = f"{list(before.info(own).shape)} in the base, {list(shape)} here"
        else:
            partners[key] = own
    matrices: dict[str, list[Part]] = defaultdict(list)
    for part in make_plan(after, rank=None, selection=selection or Selection(None, None)).parts.values():
        if part.key in partners:
            matrices[part.key].append(part)
    if not matrices:
        example = next(iter(unmatched.items()), None)
        raise CheckpointError(
            f"{before.source.reference} and {after.source.reference} share no matrix of one shape ({example}); "
            "give two checkpoints of one model"
        )
    return Pair(before, after, partners, unmatched, dict(matrices), {} if keep else None)


def find_weight(keys: Mapping[str, str], module: str) -> str | None:
    """The key of a module's weight among `canonical_keys`; None if there is none, or more than one.

    One of the names may end with the other, if the bare model was saved or the adapter was trained on it.
    """
    name = canonical_name(f"{module}.weight")
    if name in keys:
        return keys[name]
    near = [key for known, key in keys.items() if known.endswith(f".{name}") or name.endswith(f".{known}")]
    return near[0] if len(near) == 1 else None
