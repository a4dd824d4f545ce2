"""Two or more checkpoints of one model in a chain, matched by canonical names and read weight by weight."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from subspacelab.checkpoints import Checkpoint, Weights, canonical_name, open_checkpoint, tensor_digest
from subspacelab.checkpoints.tensors import FP8, SIGNIFICANT_BITS
from subspacelab.core.errors import SettingError
from subspacelab.core.files import expanded, seen_from
from subspacelab.rotation.factors import INDEX, Decomposition, FactorRecord, read_decomposition
from subspacelab.rotation.plan import Part, Selection, make_plan
from subspacelab.rotation.weight import Weight, recover_entries, to_device


@dataclass(frozen=True)
class StreamedWeight:
    """Facts about a weight that is not read yet."""

    part: Part
    """Where its entries are."""
    original_shape: tuple[int, ...]
    """Shape of the stored tensor."""
    storage_dtype: str
    """Dtype of the stored entries, as safetensors names it."""
    is_full: bool = True
    """True: all singular triples are computed."""

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
    """The open checkpoint."""
    weights: dict[str, StreamedWeight]
    """Canonical name -> facts about the weight."""
    notes: tuple[str, ...] = ()
    """Notes on how the weights are stored."""

    @classmethod
    def of(cls, checkpoint: Checkpoint, selection: Selection) -> "Streamed":
        """The selected matrices of `checkpoint`, by the rules and with the errors of `plan.make_plan`."""
        weights, plan = {}, make_plan(checkpoint, rank=None, selection=selection)
        for part in plan.parts.values():
            info = checkpoint.info(part.key)
            weights[canonical_name(part.weight)] = StreamedWeight(part, info.shape, info.dtype)
        return cls(checkpoint, weights, plan.notes)

    @property
    def source(self) -> dict[str, str | None]:
        """Reference and revision; for an absolute path, which belongs to one machine, only its name."""
        source = self.checkpoint.source
        reference = source.name if Path(source.reference).is_absolute() else source.reference
        return {"reference": reference, "revision": source.revision}

    @property
    def folder(self) -> Path | None:
        """Its folder, if it is local and not in the hub's cache."""
        source = self.checkpoint.source
        return source.folder if source.revision is None and source.folder.exists() else None

    def read(self, name: str) -> tuple[Float[Tensor, "m n"], str]:
        """The stored entries of a weight as a matrix, and their SHA-256; ValueError, naming it, for NaN or Inf."""
        part = self.weights[name].part
        tensor = part.read_sound(self.checkpoint)
        return tensor.reshape(part.shape), tensor_digest(tensor)


Place: TypeAlias = Weights | Decomposition
"""A checkpoint to compare: any source of weights, or a decomposed folder."""
ROLES = ("base", "stage1", "stage2")
"""Names of the checkpoints in the tables of a chain of three."""


@dataclass(frozen=True)
class Chain:
    """Checkpoints in the order of training; each was trained from the one before."""

    checkpoints: tuple[Decomposition | Streamed, ...]
    """Two or more."""
    names: list[str]
    """Canonical names, sorted, of the weights that all checkpoints have in one shape and rank."""
    unmatched: dict[str, str]
    """Canonical name of each other weight -> the reason."""

    @property
    def labels(self) -> tuple[str, ...]:
        """A label for each: base, stage1, stage2 for three; else the end of its reference, numbered if not unique."""
        return _labels(self.checkpoints)

    @property
    def sources(self) -> dict[str, dict[str, Any]]:
        """Label -> reference and revision."""
        return {label: c.source for label, c in zip(self.labels, self.checkpoints, strict=True)}

    def places(self, beside: Path) -> dict[str, str]:
        """Label -> source and relative path from `beside`, by which two sources of one name are distinguished."""
        return {
            label: "".join(
                (
                    f"{seen_from(beside, c.folder)} of " if c.folder is not None else "",
                    str(c.source.get("reference")),
                    f"@{revision}" if (revision := c.source.get("revision")) else "",
                )
            )
            for label, c in zip(self.labels, self.checkpoints, strict=True)
        }

    def shape(self, name: str) -> tuple[int, int]:
        """Shape of a weight as a matrix."""
        return self.checkpoints[0].weights[name].matrix_shape

    def is_full(self, name: str) -> bool:
        """Whether all singular triples of a weight are known."""
        return self.checkpoints[0].weights[name].is_full

    @property
    def num_streamed(self) -> int:
        """Number of checkpoints that are decomposed while they are read."""
        return sum(isinstance(checkpoint, Streamed) for checkpoint in self.checkpoints)

    def storage(self, name: str) -> tuple[str, ...]:
        """The dtypes a weight is stored in, as safetensors names them."""
        return tuple(checkpoint.weights[name].storage_dtype for checkpoint in self.checkpoints)

    def digests(self, name: str) -> list[str]:
        """Identifies the content of a weight in each checkpoint: a digest of its entries, or of its factors."""
        return [
            checkpoint.read(name)[1] if isinstance(checkpoint, Streamed) else _digest_of(checkpoint.weights[name])
            for checkpoint in self.checkpoints
        ]

    def walk(self, name: str, device: torch.device, keep: int | None = None) -> Iterator[Weight]:
        """Yields one weight from each checkpoint in turn, with its entries if the factors are complete.

        `keep`: number of leading triples that are enough for a weight that is decomposed while it is read (None: all).
        Neighbouring checkpoints that store the same bytes yield one object, so that unchanged weights are exactly
        equal.
        """
        known: dict[str, Weight] = {}
        for checkpoint in self.checkpoints:
            digest, weight = _read_weight(checkpoint, name, device, known, keep)
            known = {digest: weight}
            yield weight
            del weight  # so that whoever asks for the next one decides what is held meanwhile

    def read(self, name: str, device: torch.device, keep: int | None = None) -> tuple[Weight, ...]:
        """One weight of all checkpoints at once; checkpoints that store the same bytes share one object."""
        known: dict[str, Weight] = {}
        weights = []
        for checkpoint in self.checkpoints:
            digest, weight = _read_weight(checkpoint, name, device, known, keep)
            known[digest] = weight
            weights.append(weight)
        return tuple(weights)


def _digest_of(record: FactorRecord) -> str:
    """Digest of the entries and of the factors, since the method decides their last bits."""
    return " ".join([record.source_digest, *(record.factor_digests or {}).values()])


def _read_weight(
    checkpoint: Decomposition | Streamed,
    name: str,
    device: torch.device,
    known: Mapping[str, Weight],
    keep: int | None,
) -> tuple[str, Weight]:
    """Digest of the stored entries, and the weight; a known weight with that digest is used again."""
    dtype = checkpoint.weights[name].storage_dtype
    bits = SIGNIFICANT_BITS[dtype] if dtype in FP8 else 0
    if isinstance(checkpoint, Streamed):
        w, digest = checkpoint.read(name)
        return digest, known.get(digest) or Weight.of(w.to(device), keep, exact=True, digest=digest, bits=bits)
    record = checkpoint.weights[name]
    if record.source_digest in known:
        return record.source_digest, known[record.source_digest]
    factors = to_device(checkpoint.read(name), device)
    dense = recover_entries(factors, record.storage_dtype) if record.is_full else None
    return record.source_digest, Weight(factors, dense, digest=_digest_of(record), bits=bits)


def _labels(checkpoints: tuple[Decomposition | Streamed, ...]) -> tuple[str, ...]:
    if len(checkpoints) == len(ROLES):
        return ROLES
    ends = [PurePath(str(c.source.get("reference"))).name for c in checkpoints]
    return tuple(end if ends.count(end) == 1 else f"{end} ({i})" for i, end in enumerate(ends, 1))


def open_chain(*places: Place, include: str | None = None, exclude: str | None = None) -> Chain:
    """Opens checkpoints and decomposed folders as a chain; only weights whose key matches `include` and not `exclude`.

    ValueError, in one line, for fewer than two, for one that cannot be opened, and if they share no weight.
    """
    if len(places) < 2:
        raise SettingError(f"{len(places)} checkpoint to compare; give two, or a chain of three and more")
    selection = Selection.of(include, exclude)
    checkpoints = tuple(_open(place, selection) for place in places)
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
        said = [str(c.folder or c.source.get("reference")) for c in checkpoints]
        raise ValueError(
            f"{', '.join(said[:-1])} and {said[-1]} share no weight of one shape and rank ({example}); "
            "compare checkpoints of one model"
        )
    return Chain(checkpoints, names, unmatched)


def _open(place: Place, selection: Selection) -> Decomposition | Streamed:
    if isinstance(place, str | Path) and (expanded(str(place)) / INDEX).is_file():
        place = read_decomposition(expanded(str(place)))
    if isinstance(place, Decomposition):
        chosen = {name: record for name, record in place.weights.items() if selection.reason(record.key) is None}
        return replace(place, weights=chosen)
    return Streamed.of(open_checkpoint(place, whole=selection.include is None), selection)


def _mismatch(name: str, checkpoints: tuple[Decomposition | Streamed, ...]) -> str | None:
    labels = _labels(checkpoints)
    absent = [label for label, c in zip(labels, checkpoints, strict=True) if name not in c.weights]
    if absent:
        return f"absent in {' and '.join(absent)}"
    records = [c.weights[name] for c in checkpoints]
    if len({record.original_shape for record in records}) > 1:
        return f"shapes differ: {', '.join(str(list(record.original_shape)) for record in records)}"
    if len({record.rank for record in records}) > 1:
        return f"ranks differ: {', '.join(str(record.rank) for record in records)}"
    return None
