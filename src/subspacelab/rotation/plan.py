"""Which tensors of a checkpoint are decomposed, which are skipped and why, and the cost of each."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from subspacelab.checkpoints import (
    Checkpoint,
    TensorInfo,
    canonical_name,
    holds_expert_biases,
    matrix_shape,
    require_finite,
)
from subspacelab.checkpoints.tensors import unmerged_adapter
from subspacelab.rotation.experts import STACKED, Fused, find_fused
from subspacelab.rotation.factors import FactorRecord, file_names, storage_notes


@dataclass(frozen=True)
class Part:
    """One matrix: a weight, or one expert of a fused tensor."""

    key: str
    """Key of the stored tensor in its checkpoint."""
    expert: int | None
    """Index of the expert in a fused tensor [experts, a, b] or [experts * a, b]; None for an ordinary weight."""
    shape: tuple[int, int]
    """Shape of the matrix: [shape[0], -1]; for an expert [out, in]."""
    file: str
    """Name of the factors' file."""
    transposed: bool | None = False
    """Whether the expert is stored [in, out]; None if unknown, and then treated as [out, in]."""

    @property
    def weight(self) -> str:
        """Its name: the key, or `key[e]`."""
        return _weight_name(self.key, self.expert)

    def read_sound(self, checkpoint: Checkpoint) -> Tensor:
        """The stored entries; ValueError if their norm, and so the singular values, exceed float32."""
        tensor = self.read(checkpoint)
        require_finite(self.weight, tensor)
        largest = max(abs(bound.item()) for bound in tensor.aminmax())
        if largest * math.sqrt(tensor.numel()) > torch.finfo(torch.float32).max:
            raise ValueError(
                f"{self.weight}: entries up to {largest:.3g}, too large for factors in float32; leave it out"
            )
        return tensor

    def read(self, checkpoint: Checkpoint) -> Tensor:
        """The stored entries; of a fused tensor, only this expert is read, and transposed to [out, in] if needed."""
        if self.expert is None:
            return checkpoint.read(self.key)
        if len(checkpoint.info(self.key).shape) > 2:
            stored = checkpoint.read_rows(self.key, self.expert, self.expert + 1)[0]
        else:
            rows = self.shape[1] if self.transposed else self.shape[0]
            stored = checkpoint.read_rows(self.key, self.expert * rows, (self.expert + 1) * rows)
        return stored.T if self.transposed else stored


@dataclass(frozen=True)
class Plan:
    """The work of `decompose` on a checkpoint."""

    parts: dict[str, Part]
    """Weight -> matrix to decompose."""
    skipped: dict[str, str]
    """Key -> reason why the tensor is skipped."""
    notes: tuple[str, ...]
    """Notes on how the weights are stored."""


def _weight_name(key: str, expert: int | None) -> str:
    return key if expert is None else f"{key}[{expert}]"


@dataclass(frozen=True)
class Selection:
    """Selects weights by the keys of their tensors."""

    include: re.Pattern[str] | None
    """Only keys that match; None for all."""
    exclude: re.Pattern[str] | None
    """Skip keys that match."""

    @classmethod
    def of(cls, include: str | None, exclude: str | None) -> "Selection":
        """From two regular expressions; ValueError for an invalid one."""
        return cls(_pattern("include", include), _pattern("exclude", exclude))

    def reason(self, key: str) -> str | None:
        """Why the tensor `key` is not selected; None if it is."""
        if self.include is not None and not self.include.search(key):
            return f"left out by include={self.include.pattern!r}"
        if self.exclude is not None and self.exclude.search(key):
            return f"left out by exclude={self.exclude.pattern!r}"
        return None


def _pattern(flag: str, regex: str | None) -> re.Pattern[str] | None:
    try:
        return None if regex is None else re.compile(regex)
    except re.error as e:
        raise ValueError(f"{flag}={regex!r}: not a regular expression ({e})") from e


def _skip_reason(checkpoint: Checkpoint, info: TensorInfo, selection: Selection) -> str | None:
    left_out = selection.reason(info.name)
    if left_out is not None:
        return left_out
    if len(info.shape) < 2:
        return "scalar" if not info.shape else "vector"
    if holds_expert_biases(info.name, info.shape):
        return "a vector per expert"
    if info.num_entries == 0:
        return "empty"
    if checkpoint.is_scale(info.name):
        return "a scale"
    if checkpoint.quantisation(info.name) is None and not info.is_floating:
        return f"not floating ({info.dtype})"
    return None


def make_plan(checkpoint: Checkpoint, *, rank: int | None, selection: Selection) -> Plan:
    """Sorts the tensors of `checkpoint` into those to decompose and those to skip; reads headers only.

    ValueError for a rank that a matrix does not have, a name that is not valid text, two layouts of one weight, an
    adapter that is not merged, and when nothing is left to do.
    """
    infos = [checkpoint.info(name) for name in checkpoint.names]
    _require_text(checkpoint.names)
    fused = find_fused(checkpoint)
    files = file_names(weight for info in infos for weight in _weights_of(info.name, fused.get(info.name)))
    chosen: list[TensorInfo] = []
    skipped: dict[str, str] = {}
    for info in infos:
        reason = _skip_reason(checkpoint, info, selection)
        if reason is None:
            chosen.append(info)
        else:
            skipped[info.name] = reason
    if not chosen:
        include, exclude = (regex and regex.pattern for regex in (selection.include, selection.exclude))
        raise ValueError(
            f"{checkpoint.source.reference}: no weight is left to decompose with include={include!r}, "
            f"exclude={exclude!r}; there are {len(skipped)} tensors, such as {next(iter(skipped), None)!r}"
        )
    adapter = unmerged_adapter(info.name for info in chosen if "base_layer" not in info.name)
    if adapter is not None:
        raise ValueError(
            f"{checkpoint.source.reference}: holds an adapter that is not merged, such as {adapter!r}, so its weights "
            "are the base's; merge it (PEFT's merge_and_unload) and save again, or leave it out with exclude='lora_'"
        )
    parts: list[Part] = []
    for info in chosen:
        checkpoint.require_floating(info.name)
        parts += _parts_of(info, fused.get(info.name), rank, files)
    require_one_layout(part.weight for part in parts)
    storage = {part.weight: checkpoint.info(part.key).dtype for part in parts}
    notes = storage_notes(storage, [part.weight for part in parts if part.transposed is None])
    return Plan({part.weight: part for part in parts}, skipped, notes)


def find_parts(checkpoint: Checkpoint, records: Iterable[FactorRecord]) -> dict[str, Part]:
    """Weight -> matrix, for those `records` whose tensor the checkpoint still has in the same shape and dtype."""
    names, fused, parts = set(checkpoint.names), find_fused(checkpoint), {}
    for record in records:
        experts = fused.get(record.key)
        if record.key not in names or (record.expert is None) != (experts is None):
            continue
        info = checkpoint.info(record.key)
        readable = checkpoint.quantisation(record.key) is None or checkpoint.scale(record.key) is not None
        if readable and (info.shape, info.dtype) == (record.original_shape, record.storage_dtype):
            shape = record.matrix_shape if experts is None else experts.shape
            turned = experts.transposed if experts is not None else False
            parts[record.weight] = Part(record.key, record.expert, shape, record.file, turned)
    return parts


def _require_text(names: Iterable[str]) -> None:
    for name in names:
        if not name.isascii() and any("\ud800" <= c <= "\udfff" for c in name):
            raise ValueError(f"weight {name!a}: its name is no Unicode text; use another copy of the checkpoint")


def _weights_of(key: str, fused: Fused | None) -> list[str]:
    return [key] if fused is None else [_weight_name(key, e) for e in range(fused.count)]


def _parts_of(info: TensorInfo, fused: Fused | None, rank: int | None, files: Mapping[str, str]) -> list[Part]:
    if fused is None and STACKED.fullmatch(info.name):
        raise ValueError(
            f"{info.name}: all experts of a layer in one matrix, and config.json has no ffn_config.moe_num_experts "
            "that divides it; add the model's config.json, or leave it out with exclude"
        )
    shape = matrix_shape(info.shape) if fused is None else fused.shape
    if rank is not None and not 1 <= rank <= min(shape):
        raise ValueError(
            f"rank={rank}: weight {info.name!r} of shape {shape[0]}x{shape[1]} allows 1 to {min(shape)}; "
            "choose one of these or leave the weight out with exclude"
        )
    if fused is None:
        return [Part(info.name, None, shape, files[info.name])]
    weights = _weights_of(info.name, fused)
    return [Part(info.name, e, shape, files[weight], fused.transposed) for e, weight in enumerate(weights)]


def require_one_layout(weights: Iterable[str]) -> None:
    """ValueError, naming both, if two weights have one canonical name: comparisons could not distinguish them."""
    found: dict[str, str] = {}
    for weight in weights:
        other = found.setdefault(canonical_name(weight), weight)
        if other is not weight:
            raise ValueError(
                f"weights {other!r} and {weight!r} are both {canonical_name(weight)!r} in two layouts; "
                "leave one of them out with exclude"
            )


def gflop(shape: tuple[int, int]) -> float:
    """Cost of one decomposition: Gram matrix, other factor and check (2 l s^2 each), and `eigh` (about 12 s^3).

    `eigh` needs about 9 s^3 operations, few of them in matrix products: 12 s^3 is its cost in matrix-product time.
    """
    short, long = min(shape), max(shape)
    return (6 * long * short**2 + 12 * short**3) / 1e9
