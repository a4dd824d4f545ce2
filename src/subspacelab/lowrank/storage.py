"""What an approximation takes when it is stored, and what is read back: bytes per picture, cosine, task."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from subspacelab.core.callbacks import Progress
from subspacelab.linalg.token_svd import TokenSVD, token_svd
from subspacelab.lowrank.baselines import (
    PCA_BASIS,
    PCA_SKETCH,
    RANDOM_BASIS,
    SVD,
    Evaluation,
    Factorise,
    factorisations,
)
from subspacelab.lowrank.config import Format
from subspacelab.lowrank.features import Features
from subspacelab.lowrank.judging import Judge
from subspacelab.lowrank.preparation import batches_of, read_batches

BATCH = 8
X = "X"
"""The tokens themselves, not factorised."""
COMPUTED = "float32"
"""As it is computed; every other format rounds or leaves out."""
BITS = {COMPUTED: 32, "float16": 16, "bfloat16": 16, "int8": 8, "int4": 4, "pruned": 16}
FORMATS: tuple[str, ...] = get_args(Format)
SCALE_BYTES = 4
CURVES = (SVD, PCA_SKETCH, PCA_BASIS, RANDOM_BASIS)
"""Methods that are measured at other ranks than that of the networks: they need no training."""
STORED = (SVD, PCA_BASIS)
"""Of these, those that are stored in every format: the best factors of a picture, and those that share B."""
KEYS = ("method", "rank", "format", "bytes_per_picture", "bytes_once")
"""What a stored approximation is; `bytes_once` is for a B that all pictures share."""
TASK = ("task_iou", "task_iou_se", "task_change", "task_change_se")


def read_back(part: Float[Tensor, "*batch m n"], format: str, dim: int) -> Float[Tensor, "*batch m n"]:
    """What is read back of a matrix written in `format`, in float32; `dim` runs along a column of A, a row of B.

    float16, bfloat16: rounded to nearest, what is too large to the largest. int8, int4: s round(x / s) with one scale
    s = max |x| / (2^(bits - 1) - 1) along `dim`. pruned: the larger half along `dim` in float16, the others 0.
    """
    part = part.float()
    if format.startswith("int"):
        scale = part.abs().amax(dim, keepdim=True) / (2 ** (BITS[format] - 1) - 1)
        return scale * (part / scale.clamp_min(torch.finfo(part.dtype).tiny)).round()
    if format == "pruned":
        columns = part.movedim(dim, -1)
        kept = columns.abs().topk(num_kept(part.shape[dim]), sorted=False).indices
        part = torch.zeros_like(columns).scatter(-1, kept, columns.gather(-1, kept)).movedim(-1, dim)
    kind = {"float32": torch.float32, "bfloat16": torch.bfloat16}.get(format, torch.float16)
    limit = torch.finfo(kind).max
    return part.clamp(-limit, limit).to(kind).float()


def num_kept(length: int) -> int:
    """How many of a column's entries pruning keeps: the larger half, rounded up."""
    return -(-length // 2)


def stored_bytes(shape: Sequence[int], format: str, dim: int) -> int:
    """Bytes of one matrix [m, n]: its entries, a float32 scale along `dim` each for int8 and int4, a bit for each
    entry that pruning may leave out."""
    entries, length = shape[-2] * shape[-1], shape[dim]
    columns = entries // length
    if format == "pruned":
        return -(-columns * (num_kept(length) * BITS[format] + length) // 8)
    return -(-entries * BITS[format] // 8) + (SCALE_BYTES * columns if format.startswith("int") else 0)


class _LastSVD:
    """`token_svd`, kept for the matrices that were asked for last: several ranks are cut from it."""

    def __init__(self) -> None:
        self._of: tuple[Tensor, TokenSVD] | None = None

    def __call__(self, x: Float[Tensor, "batch tokens dim"]) -> TokenSVD:
        if self._of is None or self._of[0] is not x:
            self._of = x, token_svd(x)
        return self._of[1]


@dataclass(frozen=True)
class _Stored:
    """A batch of approximations, as it is read back."""

    method: str
    rank: int
    format: str
    bytes_per_picture: int
    bytes_once: int
    tokens: Float[Tensor, "batch tokens dim"]


@torch.no_grad()
def measure_storage(
    features: Features,
    evaluation: Evaluation,
    basis: Float[Tensor, "dim k"],
    ranks: Sequence[int],
    judge: Judge | None,
    judged_formats: Sequence[str],
    progress: Progress,
) -> pd.DataFrame:
    """One row per stored approximation and test picture: KEYS, dataset_id, cosine, relative_error, task_iou.

    X and the methods of STORED in every format, the others as they are computed. Networks and random sketch have the
    networks' rank; CURVES also those of `ranks` that are below the full one, which is X itself. `task_iou` has no
    value without a judge, and of formats other than COMPUTED that are not judged.
    """
    judged = {COMPUTED, *judged_formats}
    if unknown := sorted(judged - {*FORMATS}):
        raise ValueError(f"judged_formats: {unknown[0]!r} is none; allowed are {', '.join(FORMATS)}")
    if min(ranks, default=1) < 1:
        raise ValueError(f"ranks: {min(ranks)}; choose 1 or more")
    full, svd = features.meta.full_rank, _LastSVD()
    chosen = sorted({*(rank for rank in ranks if rank < full), evaluation.rank})
    by_rank = {r: factorisations(evaluation.models, basis, r, evaluation.seed, svd) for r in chosen}
    batches, found = batches_of(evaluation.rows, BATCH), []
    with progress("store", len(evaluation.rows), "pictures") as advance:
        read = read_batches(features, batches, evaluation.normalisation, evaluation.device)
        for batch, x in zip(batches, read, strict=True):
            ids = features.index["dataset_id"][batch].tolist()
            for stored in _stored(x, evaluation, by_rank, full):
                cosine, error = _near(x, stored.tokens)
                ious = torch.full((len(batch),), torch.nan)
                if judge is not None and stored.format in judged:
                    ious = judge.ious(batch, stored.tokens)
                values = {"cosine": cosine, "relative_error": error, "task_iou": ious}
                table = {"dataset_id": ids} | {name: value.tolist() for name, value in values.items()}
                found.append(pd.DataFrame({key: getattr(stored, key) for key in KEYS} | table))
            advance(len(batch))
    return pd.concat(found, ignore_index=True)


def _near(
    x: Float[Tensor, "batch tokens dim"], y: Float[Tensor, "batch tokens dim"]
) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Cosine and relative error as `similarity` has them, in float32: good to 1e-6, and for many y at a tenth of the
    time."""
    xx, yy, xy, dd = ((a * b).sum((1, 2)).double() for a, b in ((x, x), (y, y), (x, y), (x - y, x - y)))
    return xy / (xx * yy).sqrt(), (dd / xx).sqrt()


def _stored(
    x: Float[Tensor, "batch tokens dim"],
    evaluation: Evaluation,
    by_rank: Mapping[int, Mapping[str, Factorise]],
    full: int,
) -> Iterator[_Stored]:
    """All that is measured of a batch."""
    for format in FORMATS:
        yield _Stored(X, full, format, stored_bytes(x.shape, format, -2), 0, read_back(x, format, -2))
    for rank, methods in by_rank.items():
        for name in methods if rank == evaluation.rank else CURVES:
            a, b = methods[name](x)
            for format in FORMATS if name in STORED else FORMATS[:1]:
                sizes = [stored_bytes(a.shape, format, -2), stored_bytes(b.shape, format, -1)]
                shared = b.ndim < a.ndim
                y = read_back(a, format, -2) @ read_back(b, format, -1)
                if name in evaluation.models:
                    y = evaluation.models[name].network.refine(y)
                yield _Stored(name, rank, format, sizes[0] if shared else sum(sizes), sizes[1] * shared, y)


def summarise_storage(pictures: pd.DataFrame) -> pd.DataFrame:
    """One row per stored approximation: KEYS, means of cosine and relative error, TASK, on_front, on_task_front.

    `task_iou`: mean over the pictures; `task_change`: mean difference to the IoU of X as it is computed, picture by
    picture; `_se`: their standard errors over the pictures. `on_front`: no other takes at most as many bytes per
    picture and has at least its cosine; `on_task_front`: the same by `task_iou`.
    """
    full = pictures[(pictures["method"] == X) & (pictures["format"] == COMPUTED)]["task_iou"].to_numpy()
    rows = []
    for key, group in pictures.groupby(list(KEYS), sort=False):
        ious = group["task_iou"].to_numpy()
        row = dict(zip(KEYS, key, strict=True)) | group[["cosine", "relative_error"]].mean().to_dict()
        for name, values in (("task_iou", ious), ("task_change", ious - full)):
            row |= {name: values.mean(), f"{name}_se": values.std() / max(1, len(values) - 1) ** 0.5}
        rows.append(row)
    table = pd.DataFrame(rows)
    return table.assign(on_front=_on_front(table, "cosine"), on_task_front=_on_front(table, "task_iou"))


def _on_front(table: pd.DataFrame, measure: str) -> "pd.Series[bool]":
    """Whether a row has more of a measure than all that take fewer bytes per picture, or as many; False without it."""
    measured = table.dropna(subset=[measure])
    ordered = measured.sort_values(["bytes_per_picture", measure], ascending=[True, False], kind="stable")[measure]
    return (ordered > ordered.cummax().shift(fill_value=-np.inf)).reindex(table.index, fill_value=False)
