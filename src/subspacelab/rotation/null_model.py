"""The Gaussian null model: what a random update of the same size would do to each measure of one weight."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev

import torch
from jaxtyping import Float
from scipy.special import stdtr
from torch import Tensor

from subspacelab.linalg.moments import chunk_rows
from subspacelab.linalg.subspaces import composition_error
from subspacelab.linalg.svd import stable_rank, svd
from subspacelab.linalg.updates import random_cosine_deviation, random_energy_deviation
from subspacelab.rotation.chain import Weight
from subspacelab.rotation.metrics import PAIRS, SIDES, Value, generator_for, measure_change, pair_column

TURN = ("angle_mean", "angle_mean_U", "angle_mean_Vh", "nss", "intruders")
MEASURES = (
    *(f"{rotation}_{side}" for rotation in ("rotation_mse", "rotation_rel") for side in SIDES),
    *(pair_column(f, pair) for f in (*TURN, "update_stable_rank", "principal_energy") for pair in PAIRS),
    "cosine_01_12",
)
"""The columns of a chain of three that have a null model."""
LINK_MEASURES = (*TURN, "update_stable_rank", "principal_energy")
"""The columns of a link that have one."""
SUFFIXES = ("null_mean", "null_std", "z")
LARGE_Z = 5.0
RATIOS = (0.8, 1.25)
LARGE_COSINE = 0.1


@dataclass(frozen=True)
class Null:
    """What a random update of the same size gives for one measure."""

    mean: float
    """Its mean, over the draws or exact."""
    std: float | None
    """Its deviation, over the draws (divided by one less than their number) or exact; None from a single draw."""

    def z(self, value: float) -> float | None:
        """(value - mean) / std; None without a deviation, or where it is 0."""
        return (value - self.mean) / self.std if self.std else None


def stands_out(column: str, value: float, null: Null) -> bool:
    """Whether a measure is both improbable and of another size than a random update's: the rule of every summary.

    |z| > 5, and the ratio of value to null mean outside 0.8 to 1.25; of a cosine, whose null mean is 0,
    |cosine| > 0.1. A count of which all draws agree (`intruders`) need only differ from them.

    z alone will not do: sums over many entries hardly vary between draws, so an angle 4 % above random may have z = 10.
    The ratio alone will not do for small weights, where draws differ by that much. 0.8 to 1.25 is the range within
    which bioequivalence calls two means equal; 0.1 is Cohen's (1988) small correlation. `false_alarm_rate` says how
    often |z| > 5 comes about by chance.
    """
    if null.std is None or abs(value - null.mean) <= LARGE_Z * null.std:
        return False
    if column.startswith("cosine"):
        return abs(value) > LARGE_COSINE
    return not RATIOS[0] * null.mean <= value <= RATIOS[1] * null.mean


def false_alarm_rate(z: float, draws: int) -> float:
    """P(|(x - mean) / std| > z) for a normal x that is itself a random update's, mean and std from `draws` others.

    Student's t of draws - 1 degrees of freedom, times sqrt(1 + 1 / draws). For |z| > 3 and > 5: 0.122, 0.049 (3 draws);
    0.019, 0.0010 (10); 0.0086, 0.0001 (20). Angles and composition errors are skewed and exceed it: 0.04, 0.01 from 10
    draws (benchmarks/null_models.py).
    """
    return 2 * float(stdtr(draws - 1, -z / math.sqrt(1 + 1 / draws)))


def gaussian_update(shape: tuple[int, ...], norm: float, generator: torch.Generator) -> Float[Tensor, "m n"]:
    """A matrix of independent Gaussian entries scaled to Frobenius norm `norm`, float64."""
    drawn = torch.randn(shape, dtype=torch.float64, generator=generator)
    return drawn.mul_(norm / torch.linalg.vector_norm(drawn))


def null_columns(
    name: str,
    chain: tuple[Weight, Weight, Weight],
    row: Mapping[str, Value],
    *,
    seed: int,
    draws: int,
) -> dict[str, Null]:
    """The null model of each measure of `row`, that of weight `name`, for which one exists.

    The update of a pair ab is W_a + G, ||G||_F = ||W_b - W_a||_F. The composition error is that of the chain W_0,
    W_0 + G_01, W_0 + G_01 + G_12 with independent draws, so that its end lies (||G_01||^2 + ||G_12||^2)^(1/2) from W_0
    whatever the cosine of the real stages is. Energy and cosine have exact null models and take no draws: the share of
    ||G||^2 within a k x k frame has a Beta distribution, and the cosine with a random direction of R^(mn) has mean 0
    and variance 1 / (mn).

    Absent: pairs without an update or without entries to be had; sides on which the composition is an identity, or
    that have only k directions; `unchanged` (a Gaussian changes every float32 entry, and rounding it to bf16
    changes its norm, so that the size would no longer be equal). `seed`, `name` and the number of the draw decide what
    is drawn.
    """
    norms = _norms(chain, row)
    if not norms:
        return {}
    m, n, k = (int(row[size] or 0) for size in ("m", "n", "k"))
    found = {f"principal_energy_{pair}": Null(1.0, random_energy_deviation(m, n, k)) for pair in norms}
    if {"01", "12"} <= norms.keys():
        found["cosine_01_12"] = Null(0.0, random_cosine_deviation(m, n))
    return found | _nulls([_measure_draw(chain, norms, k, g) for g in null_generators(seed, name, draws)])


def _nulls(drawn: Sequence[Mapping[str, float]]) -> dict[str, Null]:
    """Mean and deviation of each measure over the draws."""
    found = {}
    for column in drawn[0] if drawn else ():
        values = [draw[column] for draw in drawn]
        found[column] = Null(fmean(values), stdev(values) if len(values) > 1 else None)
    return found


def link_null(
    a: Weight, row: Mapping[str, Value], link: Mapping[str, Value], generators: Sequence[torch.Generator]
) -> dict[str, Null]:
    """The null model of each measure of `link`, which begins at `a`; `row` has the sizes m, n and k.

    As in `null_columns`, with one update of each of `generators`: the same as there, if a weight's links take theirs
    in turn from those of `null_generators`.
    """
    relative = link["update_norm"]
    if not isinstance(relative, float) or relative == 0:
        return {}
    assert a.dense is not None
    m, n, k = (int(row[size] or 0) for size in ("m", "n", "k"))
    norm = relative * torch.linalg.vector_norm(a.svd.S.double()).item()
    found = {"principal_energy": Null(1.0, random_energy_deviation(m, n, k))}
    drawn = []
    for generator in generators:
        update = gaussian_update(a.dense.shape, norm, generator).to(a.dense.device)
        rank = {"update_stable_rank": stable_rank(update)}
        moved = Weight(svd(_add(update, a.dense)), None)
        del update  # the largest matrix that is held
        drawn.append(rank | _measure_turn(a, moved, k))
    return found | _nulls(drawn)


def null_generators(seed: int, name: str, draws: int) -> list[torch.Generator]:
    """What a weight's draws come from."""
    return [generator_for(seed, name, "null", str(i)) for i in range(draws)]


def with_null(
    row: Mapping[str, Value], nulls: Mapping[str, Null], measures: Collection[str] = MEASURES
) -> dict[str, Value]:
    """`row` with `x_null_mean`, `x_null_std` and `x_z` beside every measure x; None where there is no null model."""
    wide: dict[str, Value] = {}
    for column, value in row.items():
        wide[column] = value
        if column in measures:
            null = nulls.get(column)
            z = null.z(value) if null is not None and isinstance(value, float | int) else None
            found = (null.mean, null.std, z) if null is not None else (None, None, None)
            wide |= {f"{column}_{suffix}": v for suffix, v in zip(SUFFIXES, found, strict=True)}
    return wide


def _norms(chain: tuple[Weight, Weight, Weight], row: Mapping[str, Value]) -> dict[str, float]:
    """||W_b - W_a||_F of each pair that has an update."""
    norms = {}
    for pair, (a, _) in PAIRS.items():
        relative = row[f"update_norm_{pair}"]
        if isinstance(relative, float) and relative > 0:
            norms[pair] = relative * torch.linalg.vector_norm(chain[a].svd.S.double()).item()
    return norms


def _measure_draw(
    chain: tuple[Weight, Weight, Weight], norms: Mapping[str, float], k: int, generator: torch.Generator
) -> dict[str, float]:
    """Every measure that needs a draw, of one random update per pair."""
    found: dict[str, float] = {}
    middle, end = None, None
    for pair, norm in norms.items():
        start, state = chain[PAIRS[pair][0]], generator.get_state()
        assert start.dense is not None
        update = gaussian_update(start.dense.shape, norm, generator).to(start.dense.device)
        found[f"update_stable_rank_{pair}"] = stable_rank(update)
        if pair == "12" and middle is not None and end is not None:
            end.add_(update)
            del update  # drawn again below: a matrix less while the basis of `end` is computed
            found |= _compose(chain[0], middle, end)
            middle = end = None
            generator.set_state(state)
            update = gaussian_update(start.dense.shape, norm, generator).to(start.dense.device)
        moved = Weight(svd(_add(update, start.dense)), None)
        if pair == "01":
            middle, end = moved, update
        del update
        found |= {pair_column(field, pair): value for field, value in _measure_turn(start, moved, k).items()}
    return found


def _add(update: Float[Tensor, "m n"], stored: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
    """The sum in place of `update`, in chunks, since torch converts all of what it adds."""
    rows = chunk_rows(update)
    for out, part in zip(update.split(rows), stored.split(rows), strict=True):
        out.add_(part)
    return update


def _measure_turn(start: Weight, moved: Weight, k: int) -> dict[str, float]:
    """What a random update has done to the singular directions and values of a weight."""
    change = asdict(measure_change(start, moved, k))
    return {field: change[field] for field in TURN if not _is_whole(field, start, k)}


def _is_whole(field: str, weight: Weight, k: int) -> bool:
    """Whether the sides that an angle is of have k directions in all: it is 0 for any matrices then."""
    if not field.startswith("angle"):
        return False
    whole = {"U": weight.svd.U.shape[0] == k, "Vh": weight.svd.Vh.shape[1] == k}
    return whole.get(field.rpartition("_")[2], all(whole.values()))


def _compose(base: Weight, middle: Weight, end: Float[Tensor, "m n"]) -> dict[str, float]:
    """The composition error on the side that is no identity; any basis of `end`'s column space gives the same."""
    found: dict[str, float] = {}
    for side in SIDES:
        q0, q1 = base.basis(side), middle.basis(side)
        if q1.shape[0] > q1.shape[1]:
            q2 = torch.linalg.qr(end if side == "U" else end.T).Q
            error = composition_error(q0, q1, q2)
            found |= {f"rotation_mse_{side}": error.mse, f"rotation_rel_{side}": error.relative}
    return found
