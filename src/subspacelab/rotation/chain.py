"""Three decomposed checkpoints of one model, matched by canonical names."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from subspacelab.files import seen_from
from subspacelab.rotation.factors import Decomposition, read_decomposition
from subspacelab.rotation.weights import Weight, recover_entries, to_device

ROLES = ("base", "stage1", "stage2")


@dataclass(frozen=True)
class Chain:
    """base -> stage 1 -> stage 2."""

    checkpoints: tuple[Decomposition, Decomposition, Decomposition]
    """The three, in order."""
    names: list[str]
    """Canonical names of the weights that all three have in one shape and rank, sorted."""
    unmatched: dict[str, str]
    """Canonical name of each other weight, with the reason."""

    @property
    def sources(self) -> dict[str, dict[str, Any]]:
        """Role to reference and revision."""
        return {role: c.source for role, c in zip(ROLES, self.checkpoints, strict=True)}

    def places(self, beside: Path) -> dict[str, str]:
        """Role to what it is and where, seen from `beside`: two sources of one name are two."""
        return {
            role: f"{seen_from(beside, c.folder)} of {c.source.get('reference')}"
            + (f"@{revision}" if (revision := c.source.get("revision")) else "")
            for role, c in zip(ROLES, self.checkpoints, strict=True)
        }

    def shape(self, name: str) -> tuple[int, int]:
        """Shape of a weight as a matrix."""
        return self.checkpoints[0].weights[name].matrix_shape

    def is_full(self, name: str) -> bool:
        """Whether all singular triples of a weight were kept."""
        return self.checkpoints[0].weights[name].is_full

    def storage(self, name: str) -> tuple[str, str, str]:
        """The types that a weight is stored in, as safetensors names them."""
        base, stage1, stage2 = (checkpoint.weights[name].storage_dtype for checkpoint in self.checkpoints)
        return base, stage1, stage2

    def read(self, name: str, device: torch.device) -> tuple[Weight, Weight, Weight]:
        """One weight of the three checkpoints, with its entries where the factors are complete.

        Checkpoints that store the same bytes share one set of factors, so that what did not move is exactly equal.
        """
        digests = [checkpoint.weights[name].source_digest for checkpoint in self.checkpoints]
        read = {d: _read_weight(c, name, device) for d, c in dict(zip(digests, self.checkpoints, strict=True)).items()}
        base, stage1, stage2 = (read[digest] for digest in digests)
        return base, stage1, stage2


def _read_weight(checkpoint: Decomposition, name: str, device: torch.device) -> Weight:
    record = checkpoint.weights[name]
    svd = to_device(checkpoint.read(name), device)
    return Weight(svd, recover_entries(svd, record.storage_dtype) if record.is_full else None)


def open_chain(base_dir: Path, stage1_dir: Path, stage2_dir: Path) -> Chain:
    """Opens three decomposed folders; a ValueError says which is none, or that they share no weight."""
    base, stage1, stage2 = (read_decomposition(folder) for folder in (base_dir, stage1_dir, stage2_dir))
    checkpoints = (base, stage1, stage2)
    unmatched = {}
    names = []
    for name in sorted({name for checkpoint in checkpoints for name in checkpoint.weights}):
        reason = _mismatch(name, checkpoints)
        if reason is None:
            names.append(name)
        else:
            unmatched[name] = reason
    if not names:
        example = next(iter(unmatched.items()), None)
        raise ValueError(f"{base_dir}, {stage1_dir} and {stage2_dir} share no weight of one shape and rank ({example})")
    return Chain(checkpoints, names, unmatched)


def _mismatch(name: str, checkpoints: tuple[Decomposition, ...]) -> str | None:
    absent = [role for role, c in zip(ROLES, checkpoints, strict=True) if name not in c.weights]
    if absent:
        return f"absent in {' and '.join(absent)}"
    records = [c.weights[name] for c in checkpoints]
    if len({record.original_shape for record in records}) > 1:
        return f"shapes differ: {', '.join(str(list(record.original_shape)) for record in records)}"
    if len({record.rank for record in records}) > 1:
        return f"ranks differ: {', '.join(str(record.rank) for record in records)}"
    return None
