"""Measures of one weight: along a chain of three checkpoints, and between two."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from subspacelab.linalg.moments import chunk_rows
from subspacelab.linalg.subspaces import Basis, Span, composition_error, principal_angles, rotation, span_of
from subspacelab.linalg.svd import normalised_spectral_shift, spectral_gap
from subspacelab.linalg.updates import intruder_dimensions, principal_energy, update_cosine
from subspacelab.rotation.leading import LOOKED_AT, overlaps, stable_rank_of
from subspacelab.rotation.weight import Weight, subtract


@dataclass(frozen=True)
class Rotation:
    """The claim R_02 = R_01 R_12 on one side of one weight, with its controls.

    R_01 R_12 - R_02 = -Q_0^T (I - Q_1 Q_1^T) Q_2. On the tall side it measures how far the column space tilts; on the
    square side it is an identity. Rotations of the directions within the space are invisible to it.
    """

    mse: float
    """Mean squared entry of R_01 R_12 - R_02."""
    relative: float
    """Frobenius norm of the difference over that of R_02."""
    identity: bool
    """Whether the middle basis is square: then Q_1 Q_1^T = I and the claim holds for any matrices."""
    random_mse: float
    """The MSE with a basis of a random space of the same dimension in the middle: the value without any relation."""
    oracle_mse: float
    """The MSE with the end point as the middle basis: the value for a perfect relation."""


def measure_rotation(q0: Basis, q1: Basis, q2: Basis, generator: torch.Generator) -> Rotation:
    """Tests R_02 = R_01 R_12, R_ab = Q_a^T Q_b, for the singular bases of a chain of three (columns), in float64.

    The error depends on their spans alone, so each may be a `Span`.
    """
    found = composition_error(q0, q1, q2)
    middle = q1.columns if isinstance(q1, Span) else q1
    random = torch.randn(middle.shape, generator=generator, dtype=torch.float64).to(middle.device)
    return Rotation(
        mse=found.mse,
        relative=found.relative,
        identity=middle.shape[0] == middle.shape[1],
        random_mse=composition_error(q0, span_of(random), q2).mse,
        oracle_mse=composition_error(q0, q2, q2).mse,
    )


@dataclass(frozen=True)
class Change:
    """How checkpoint b of a weight differs from checkpoint a; the fields are the names of the columns."""

    angle_mean: float
    """Mean principal angle of the leading k directions over both sides, degrees."""
    angle_mean_U: float
    """The same for the left side, degrees."""
    angle_mean_Vh: float
    """The same for the right side, degrees."""
    angle_max: float
    """Largest principal angle of both sides, degrees."""
    angle_max_U: float
    """The same for the left side, degrees."""
    angle_max_Vh: float
    """The same for the right side, degrees."""
    nss: float
    """Normalised spectral shift ||s_b - s_a|| / ||s_a||."""
    intruders: int
    """Number of leading directions of b, of at most 10, that are near no direction of a (|cos| < 0.5)."""
    update_norm: float | None
    """||W_b - W_a||_F / ||W_a||_F; None, like the next three, if the entries are not known."""
    update_stable_rank: float | None
    """||D||_F^2 / ||D||_2^2 of D = W_b - W_a; 0 without an update."""
    unchanged: float | None
    """Share of entries whose stored bits are unchanged, as far as factors on disk can tell (`weight.subtract`)."""
    principal_energy: float | None
    """Share of ||D||_F^2 inside the leading-k frame of a, over that of a random update; 0 without an update."""


def measure_change(a: Weight, b: Weight, k: int) -> Change:
    """Measures b against a; angles and principal frame use the `k` leading directions."""
    return Change(**measure_turn(a, b, k), **_measure_update(a, b, k))


def measure_turn(a: Weight, b: Weight, k: int) -> dict[str, Any]:
    """The fields of `Change` that depend only on singular directions and values."""
    left = principal_angles(a.svd.U[:, :k], b.svd.U[:, :k]).rad2deg()
    right = principal_angles(a.V[:, :k], b.V[:, :k]).rad2deg()
    left_mean, right_mean = left.mean().item(), right.mean().item()
    return {
        "angle_mean": (left_mean + right_mean) / 2,
        "angle_mean_U": left_mean,
        "angle_mean_Vh": right_mean,
        "angle_max": max(left.max().item(), right.max().item()),
        "angle_max_U": left.max().item(),
        "angle_max_Vh": right.max().item(),
        "nss": normalised_spectral_shift(a.S, b.S),
        "intruders": count_intruders(a, b),
    }


def count_intruders(a: Weight, b: Weight) -> int:
    """`intruder_dimensions` of b's leading directions; of `a`, possibly only the leading ones are known.

    For a direction that is near none of the known ones of `a`, the part outside their span is unknown. If its squared
    length is below eps^2, no other direction of `a` can be near it; else all directions of `a` are computed.
    """
    if not a.is_partial:
        return intruder_dimensions(a.svd.U, b.svd.U)
    leading = b.svd.U[:, :LOOKED_AT]
    seen = rotation(a.svd.U, leading)
    far = seen.abs().amax(dim=0) < NEAR
    if bool((far & (1 - seen.square().sum(dim=0) >= NEAR**2)).any()):
        assert a.dense is not None
        far = overlaps(a.dense, leading).abs().amax(dim=0) < NEAR
    return int(far.sum())


def _measure_update(a: Weight, b: Weight, k: int) -> dict[str, Any]:
    if a.dense is None or b.dense is None:
        return dict.fromkeys(("update_norm", "update_stable_rank", "unchanged", "principal_energy"))
    update = subtract(b, a)
    size = torch.linalg.vector_norm(a.S.double()).item()  # ||W_a||_F, from its singular values
    return {
        "update_norm": torch.linalg.vector_norm(update, dtype=torch.float64).item() / (size or math.nan),
        "update_stable_rank": stable_rank_of(update),
        "unchanged": unchanged_share(a, b, update),
        "principal_energy": principal_energy(update, a.svd.U[:, :k], a.V[:, :k]),
    }


def unchanged_share(a: Weight, b: Weight, update: Float[Tensor, "m n"]) -> float:
    """Share of equal entries: equal bits, or equal numbers of two dtypes; for recovered entries, a difference of 0."""
    if a.dense is None or b.dense is None or not (a.exact and b.exact):
        return 1 - int(update.count_nonzero()) / update.numel()
    x, y = a.dense, b.dense
    if x.dtype == y.dtype:
        bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
        return 1 - int((x.view(bits) != y.view(bits)).count_nonzero()) / x.numel()
    rows = chunk_rows(x)
    pairs = zip(x.split(rows), y.split(rows), strict=True)
    return 1 - sum(int((p.double() != q.double()).count_nonzero()) for p, q in pairs) / x.numel()


def measure_course(w0: Weight, w1: Weight, w2: Weight) -> float | None:
    """cos(W_1 - W_0, W_2 - W_1): 1 if the second stage continues the first, -1 if it reverts it, 0 if either is 0."""
    if w0.dense is None or w1.dense is None or w2.dense is None:
        return None
    return update_cosine(subtract(w1, w0), subtract(w2, w1))


ALREADY_BF16 = 1e-5  # rounding moves a float32 weight by 1.7e-3 of its norm, one of bf16 entries by rounding noise


def bf16_neighbour(w: Float[Tensor, "m n"], generator: torch.Generator) -> Float[Tensor, "m n"]:
    """A float32 matrix that bf16 storage cannot distinguish from `w`: half an ulp of noise away.

    It is bf16(w), unless the entries of `w` are already bf16, so that rounding changes nothing. Then it is a seeded
    draw of the weights that would be stored as `w`: w + u ulp(w) / 2 with u uniform in (-1, 1).
    """
    moved = size = 0.0
    for chunk in w.split(chunk_rows(w)):
        exact = chunk.double()
        moved += (chunk.bfloat16().double() - exact).square().sum().item()
        size += exact.square().sum().item()
    if moved > ALREADY_BF16**2 * size:
        return w.bfloat16().float()
    return draw_unrounded(w.bfloat16(), generator)


def draw_unrounded(w: Float[Tensor, "m n"], generator: torch.Generator, bits: int = 8) -> Float[Tensor, "m n"]:
    """A float32 matrix that rounds to the bf16 matrix `w`, uniform in each rounding interval; zeros stay zero."""
    drawn = torch.empty(w.shape, dtype=torch.float32, device=w.device)
    rows = -(-chunk_rows(w) // 16)  # of each chunk there are nine of its size
    for out, chunk in zip(drawn.split(rows), w.split(rows), strict=True):
        x = chunk.float()
        u = torch.rand(x.shape, generator=generator, device=generator.device).to(x.device) * 2 - 1
        mantissa, exponent = torch.frexp(x)
        # bf16 has 8 significant bits: ulp = 2^(exponent - 8), and half of that below a power of two.
        half_ulp = torch.ldexp(torch.full_like(x, 0.5), exponent - bits)
        half_ulp = torch.where((mantissa.abs() == 0.5) & (u < 0), half_ulp / 2, half_ulp)
        # 1 - 2^-13 keeps the float32 sum from landing on the midpoint, which would round away.
        out.copy_(x + x.sign() * u * half_ulp * (1 - 2**-13))
    return drawn


Value = float | int | bool | str | None
PAIRS = {"01": (0, 1), "12": (1, 2), "02": (0, 2)}
SIDES = ("U", "Vh")
CHANGE_FIELDS = tuple(Change.__dataclass_fields__)
LARGEST_DEFAULT_K = 64
NEAR = 0.5  # |cosine| from which a direction of the base counts as near (2410.21228)
MIN_GAP = 1.05  # below, any small update turns some of the leading k directions far: the largest angle tells nothing


def pair_column(field: str, pair: str) -> str:
    """Column name of a measure for a pair of checkpoints; the side, if there is one, comes last."""
    for side in SIDES:
        if field.endswith(f"_{side}"):
            return f"{field.removesuffix(f'_{side}')}_{pair}_{side}"
    return f"{field}_{pair}"


def generator_for(seed: int, *names: str) -> torch.Generator:
    """A generator that depends only on `seed` and the names, not on other weights or their order."""
    digest = hashlib.sha256(" ".join([str(seed), *names]).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def measure_weight(name: str, chain: tuple[Weight, Weight, Weight], *, k: int | None, seed: int) -> dict[str, Value]:
    """All measures of weight `name` along base, stage 1, stage 2; None for one that is undefined or unknown.

    `k` leading directions are compared, or all if there are fewer (None: 64). If the gap s_k / s_(k+1) of the base is
    below 1.05, `angle_max_*` is None.
    """
    row, gap = _sizes(chain[0], k)
    k = int(row["k"] or 0)
    row |= _rotation_columns(name, chain, seed)
    changes = {pair: asdict(measure_change(chain[a], chain[b], k)) for pair, (a, b) in PAIRS.items()}
    row |= {pair_column(field, pair): changes[pair][field] for field in CHANGE_FIELDS for pair in PAIRS}
    row |= {"gap_k": gap, "cosine_01_12": measure_course(*chain)}
    row |= _floor_columns(name, chain[0], k, seed)
    return _told(row, gap)


ROTATION_FIELDS = {
    "rotation_mse": "mse",
    "rotation_rel": "relative",
    "identity": "identity",
    "random_mse": "random_mse",
    "oracle_mse": "oracle_mse",
}
"""Column -> field of `Rotation`."""


def leading_directions(k: int | None, rank: int) -> int:
    """Number of directions compared for a weight of that rank; None: 64."""
    return min(k or LARGEST_DEFAULT_K, rank)


def _sizes(first: Weight, k: int | None) -> tuple[dict[str, Value], float]:
    """The columns with sizes, and the gap at k."""
    m, n, rank = first.svd.U.shape[0], first.svd.Vh.shape[1], len(first.S)
    k = leading_directions(k, rank)
    return {"m": m, "n": n, "rank": rank, "k": k}, spectral_gap(first.S, k)


def _rotation_columns(name: str, chain: tuple[Weight, Weight, Weight], seed: int) -> Mapping[str, Value]:
    measured: dict[str, Rotation | None] = {}
    for side in SIDES:
        q0, q1, q2 = (weight.span(side) for weight in chain)
        if q0 is None or q1 is None or q2 is None:  # an identity, which proves nothing
            measured[side] = None
        else:
            measured[side] = measure_rotation(q0, q1, q2, generator_for(seed, name, "random", side))
    return {
        f"{column}_{side}": column == "identity" or None if found is None else getattr(found, field)
        for column, field in ROTATION_FIELDS.items()
        for side, found in measured.items()
    }


def _floor_columns(name: str, base: Weight, k: int, seed: int) -> Mapping[str, Value]:
    """The rounding floor: measures of the chain base -> bf16 neighbour -> base, and of the pair base, neighbour."""
    near = _neighbour(name, base, seed)
    if near is None:
        return {f"floor_{column}": None for column in (*(f"rotation_mse_{side}" for side in SIDES), *CHANGE_FIELDS)}
    mse: dict[str, Value] = {}
    for side in SIDES:
        q0, q1 = base.span(side), near.span(side)
        error = None if q0 is None or q1 is None else composition_error(q0, q1, q0).mse
        mse[f"floor_rotation_mse_{side}"] = error
    return mse | {f"floor_{field}": value for field, value in asdict(measure_change(base, near, k)).items()}


def _neighbour(name: str, base: Weight, seed: int) -> Weight | None:
    """The weight with half an ulp of bf16 or FP8 noise; None if the entries are not known."""
    if base.dense is None:
        return None
    generator = generator_for(seed, name, "floor")
    dense = draw_unrounded(base.dense, generator, base.bits) if base.bits else bf16_neighbour(base.dense, generator)
    return Weight.of(dense, base.svd.U.shape[1] if base.is_partial else None, exact=base.exact)


def measure_start(name: str, first: Weight, *, k: int | None, seed: int) -> dict[str, Value]:
    """Columns that the links of a weight share: sizes, and gap_k and floor_* of its first checkpoint."""
    row, gap = _sizes(first, k)
    near = _neighbour(name, first, seed)
    floor = asdict(measure_change(first, near, int(row["k"] or 0))) if near else dict.fromkeys(CHANGE_FIELDS)
    return _told(row | {"gap_k": gap} | {f"floor_{field}": value for field, value in floor.items()}, gap)


def measure_link(a: Weight, b: Weight, start: Mapping[str, Value]) -> dict[str, Value]:
    """The columns of one link, `Change` from a to b; `start` is the weight's `measure_start`."""
    gap = start["gap_k"]
    change = asdict(measure_change(a, b, int(start["k"] or 0)))
    return _told(change, math.inf if gap is None else float(gap))


def _told(row: Mapping[str, Value], gap: float) -> dict[str, Value]:
    """The row without uninformative values: infinities, and the largest angles if the gap is narrow."""
    return {column: None if gap < MIN_GAP and "angle_max" in column else finite(value) for column, value in row.items()}


def finite(value: Value) -> Value:
    """The value; None for infinity or NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
