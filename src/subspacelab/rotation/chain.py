"""Two or more checkpoints of one model in a chain, matched by canonical names, and the factors of one weight."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from subspacelab.checkpoints import Checkpoint, Weights, canonical_name, open_checkpoint, tensor_digest
from subspacelab.checkpoints.tensors import FP8, SIGNIFICANT_BITS
from subspacelab.core.errors import SettingError
from subspacelab.core.files import expanded, seen_from
from subspacelab.linalg.moments import chunk_rows
from subspacelab.linalg.svd import SVD, svd
from subspacelab.rotation.factors import INDEX, Decomposition, FactorRecord, read_decomposition
from subspacelab.rotation.leading import leading_svd
from subspacelab.rotation.plan import Part, Selection, make_plan


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


STORAGE = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
STORAGE |= dict.fromkeys(FP8, torch.float32)  # which code times scale is computed in


@dataclass(frozen=True)
class Weight:
    """A weight as its factors and, if they are complete, as a matrix."""

    svd: SVD
    """U [m, r], S [r], Vh [r, n]; or only the leading triples."""
    dense: Float[Tensor, "m n"] | None
    """The entries; None if the factors on disk keep only the leading triples."""
    exact: bool = False
    """Whether `dense` holds the stored entries, rather than entries recovered from the factors."""
    spectrum: Float[Tensor, " r"] | None = None
    """All singular values, if `svd` holds only the leading triples of a weight whose entries are known."""
    digest: str = ""
    """Identifies the content of the weight (`Chain.digests`)."""
    bits: int = 0
    """Significant bits of the stored entries, if they are fewer than bf16's 8."""

    @classmethod
    def of(
        cls,
        w: Float[Tensor, "m n"],
        keep: int | None = None,
        *,
        exact: bool = False,
        entries: bool = True,
        digest: str = "",
        bits: int = 0,
    ) -> "Weight":
        """The decomposition of a matrix: its `keep` leading triples if they cost less than all; else, or for None, all.

        `entries`: keep them too.
        """
        dense = w if entries else None
        found = None if keep is None else leading_svd(w, keep)
        if found is None:
            return cls(svd(w), dense, exact, None, digest, bits)
        return cls(found.svd, dense, exact, found.spectrum, digest, bits)

    @property
    def S(self) -> Float[Tensor, " r"]:
        """All known singular values, descending."""
        return self.svd.S if self.spectrum is None else self.spectrum

    @property
    def is_partial(self) -> bool:
        """Whether only the leading triples were computed, although all could be."""
        return self.spectrum is not None

    @cached_property
    def noise(self) -> Float[Tensor, "m n"]:
        """Largest error of an entry of `dense` recovered from float32 factors, at most the 0.4 % of bf16.

        0 if the entries were read.

        U, S and Vh are rounded by 2^-24 each, and the errors of the terms U_ik S_k V_kj add up randomly over k: the
        difference of two such sums has a deviation of 1 to 1.1 2^-24 (sum of the squared terms)^(1/2). Twice 4
        deviations are allowed here: 3e-7 of a typical entry, while a step of bf16 is 4e-3 of its own entry. float32
        storage rounds the sum once more, and the decomposition in float64 adds n eps s_1.
        """
        assert self.dense is not None
        if self.exact:
            return torch.zeros((), dtype=torch.bfloat16, device=self.dense.device).expand(self.dense.shape)
        rounding, rows = 2**-24, chunk_rows(self.dense)
        right = (self.svd.Vh * (4 * rounding * self.svd.S)[:, None]).square()
        least = len(self.svd.S) * torch.finfo(torch.float64).eps * self.svd.S[0].item()
        noise = torch.empty(self.dense.shape, dtype=torch.bfloat16, device=self.dense.device)
        for out, u, w in zip(*(t.split(rows) for t in (noise, self.svd.U, self.dense)), strict=True):
            out.copy_((u.square().float() @ right.float()).sqrt_().add_(rounding * w.abs().float()).add_(least))
        return noise

    @property
    def V(self) -> Float[Tensor, "n r"]:
        """Right singular vectors as columns."""
        return self.svd.Vh.T

    def basis(self, side: str) -> Float[Tensor, "long r"]:
        """Singular vectors of a side, "U" or "Vh", as columns."""
        return self.svd.U if side == "U" else self.V


def to_device(svd: SVD, device: torch.device) -> SVD:
    """A copy on `device`."""
    return SVD(svd.U.to(device), svd.S.to(device), svd.Vh.to(device), svd.method)


def recover_entries(svd: SVD, storage_dtype: str) -> Float[Tensor, "m n"]:
    """U diag(S) Vh in float64, rounded to the dtype the weight was stored in.

    Float32 factors are wrong by about 1e-8 of a typical entry, a bf16 step is 4e-3 of an entry: rounding recovers every
    bf16 or fp16 entry, except entries about 1e5 times smaller than typical. In float32 storage the error of 1e-8
    remains.
    """
    dtype = STORAGE[storage_dtype]
    scaled = svd.S.double()[:, None] * svd.Vh.double()
    w = torch.empty(svd.U.shape[0], svd.Vh.shape[1], dtype=dtype, device=svd.U.device)
    rows = chunk_rows(w)
    for out, u in zip(w.split(rows), svd.U.split(rows), strict=True):
        out.copy_(u.double() @ scaled)
    return w


def subtract(b: Weight, a: Weight) -> Float[Tensor, "m n"]:
    """B - A of the entries in float32; exactly 0 if two sets of float32 factors cannot distinguish an entry from equal.

    Entries that were read as float64 are subtracted in float64.
    """
    if a.dense is None or b.dense is None:
        raise ValueError("factors that keep only the leading triples do not give the entries back")
    update = torch.empty(a.dense.shape, dtype=torch.float32, device=a.dense.device)
    wide = a.exact and b.exact and torch.float64 in (a.dense.dtype, b.dense.dtype)
    dtype = torch.float64 if wide else torch.float32
    parts = (t.split(chunk_rows(update)) for t in (update, b.dense, a.dense, b.noise, a.noise))
    for out, y, x, noise_y, noise_x in zip(*parts, strict=True):
        moved = y.to(dtype) - x.to(dtype)  # exact for neighbouring bf16, fp16 or fp32 entries (Sterbenz)
        out.copy_(torch.where(moved.abs() <= noise_y.float() + noise_x.float(), 0, moved))
    return update


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
