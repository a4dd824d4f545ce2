"""Null models: what random updates of the same size would do to each measure of one weight."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

import torch
from jaxtyping import Float
from scipy.special import stdtr
from torch import Tensor

from subspacelab.linalg.moments import chunk_rows
from subspacelab.linalg.subspaces import composition_error, span_of
from subspacelab.linalg.updates import (
    principal_energy,
    random_cosine_deviation,
    random_energy_deviation,
    random_frames_deviation,
)
from subspacelab.rotation.leading import stable_rank_of
from subspacelab.rotation.metrics import PAIRS, SIDES, Value, generator_for, measure_turn, pair_column
from subspacelab.rotation.random_updates import MODELS, Model, RealUpdate
from subspacelab.rotation.weight import Weight, subtract

TURN = ("angle_mean", "angle_mean_U", "angle_mean_Vh", "nss", "intruders")
MEASURES = (
    *(f"{rotation}_{side}" for rotation in ("rotation_mse", "rotation_rel") for side in SIDES),
    *(pair_column(f, pair) for f in (*TURN, "update_stable_rank", "principal_energy") for pair in PAIRS),
    "cosine_01_12",
)
"""Columns of a chain of three that have a null model."""
LINK_MEASURES = (*TURN, "update_stable_rank", "principal_energy")
"""Columns of a link that have a null model."""
SUFFIXES = ("null_mean", "null_std", "z")
"""Suffixes of the columns of the Gaussian null model, after the name of the measure."""
SUFFIXES_OF: dict[str, tuple[str, str, str]] = {
    model: SUFFIXES if model == "gaussian" else (f"{model}_mean", f"{model}_std", f"{model}_z") for model in MODELS
}
"""Null model -> its suffixes."""
ALL_SUFFIXES = tuple(sorted((s for suffixes in SUFFIXES_OF.values() for s in suffixes), key=len, reverse=True))
"""The suffixes of all null models, longest first."""
SAME_FOR_ALL: dict[str, tuple[str, ...]] = {
    "gaussian": (),
    "spectrum": ("update_stable_rank", "cosine"),
    "permuted": ("cosine",),
}
"""Measures for which a null model has no columns: with the same singular values, the stable rank equals the real
update's; the cosine with an unrelated direction has the same distribution in all models."""
LEAST_IN_FLOAT32 = 1e-6
"""Norm of an update, of its weight's, beside which float32 rounding of 3e-8 does not show in a composition error."""
LARGE_Z = 5.0
RATIOS = (0.8, 1.25)
LARGE_COSINE = 0.1


@dataclass(frozen=True)
class Null:
    """Distribution of one measure under random updates of the same size."""

    mean: float
    """Mean, over the draws or exact."""
    std: float | None
    """Deviation, over the draws (with n - 1) or exact; None from a single draw."""

    def z(self, value: float) -> float | None:
        """(value - mean) / std; None without a deviation, or if it is 0."""
        return (value - self.mean) / self.std if self.std else None


def stands_out(column: str, value: float, null: Null) -> bool:
    """Whether a measure is both improbable and of another size than a random update's: the rule of every summary.

    |z| > 5, and a ratio of value to null mean outside 0.8 to 1.25; for a cosine, whose null mean is 0, |cosine| > 0.1.
    A count on which all draws agree (`intruders`) need only differ from them.

    z alone is not enough: sums over many entries hardly vary between draws, so that an angle 4 % above random may have
    z = 10. The ratio alone is not enough for small weights, whose draws differ by that much. 0.8 to 1.25 is the range
    in which bioequivalence calls two means equal; 0.1 is Cohen's (1988) small correlation. `false_alarm_rate` gives the
    probability of |z| > 5 by chance.
    """
    if null.std is None or abs(value - null.mean) <= LARGE_Z * null.std:
        return False
    if column.startswith("cosine"):
        return abs(value) > LARGE_COSINE
    return not RATIOS[0] * null.mean <= value <= RATIOS[1] * null.mean


def false_alarm_rate(z: float, draws: int) -> float:
    """P(|(x - mean) / std| > z) for a normal x that is itself a random update's, mean and std from `draws` others.

    Student's t with draws - 1 degrees of freedom, times sqrt(1 + 1 / draws). For |z| > 3 and > 5: 0.122, 0.049 (3
    draws); 0.019, 0.0010 (10); 0.0086, 0.0001 (20). Angles and composition errors are skewed and exceed it: 0.04, 0.01
    from 10 draws (benchmarks/null_models.py).
    """
    return 2 * float(stdtr(draws - 1, -z / math.sqrt(1 + 1 / draws)))


def has_null(model: str, column: str) -> bool:
    """Whether a null model applies to a measure."""
    return not column.startswith(SAME_FOR_ALL[model])


def null_columns(
    name: str,
    chain: tuple[Weight, Weight, Weight],
    row: Mapping[str, Value],
    *,
    seed: int,
    draws: int,
    model: Model = "gaussian",
) -> dict[str, Null]:
    """The null model of each measure in `row`, the row of weight `name`, for which one exists.

    The update of a pair ab is W_a + G, where G is like W_b - W_a (`random_updates.MODELS`) and has its Frobenius norm.
    The composition error is that of the chain W_0, W_0 + G_01, W_0 + G_01 + G_12 with independent draws, so that its
    end has the distance (||G_01||^2 + ||G_12||^2)^(1/2) from W_0, whatever the cosine of the real stages is. The cosine
    and, except for permuted entries, the energy have exact null models and need no draws: the share of ||G||^2 within a
    k x k frame has a Beta distribution, and the cosine with a random direction of R^(mn) has mean 0 and variance 1 /
    (mn).

    Missing: pairs without an update or without known entries; sides on which the composition is an identity, or that
    have only k directions; measures in `SAME_FOR_ALL`; `unchanged` (a Gaussian changes every float32 entry, rounding it
    to bf16 changes its norm, and shuffled entries leave as many unchanged as the real update). `seed`, `name`, the
    model and the number of the draw determine a draw.
    """
    updates = _updates(chain, row)
    if not updates:
        return {}
    m, n, k = (int(row[size] or 0) for size in ("m", "n", "k"))
    found = {
        f"principal_energy_{pair}": null
        for pair, u in updates.items()
        if (null := _exact_energy(model, u, k)) is not None
    }
    if {"01", "12"} <= updates.keys() and has_null(model, "cosine"):
        found["cosine_01_12"] = Null(0.0, random_cosine_deviation(m, n))
    generators = null_generators(seed, name, draws, model)
    return found | _nulls([_measure_draw(chain, updates, k, model, generator) for generator in generators])


def _exact_energy(model: Model, update: RealUpdate, k: int) -> Null | None:
    m, n = update.shape
    if model == "gaussian":
        return Null(1.0, random_energy_deviation(m, n, k))
    return Null(1.0, random_frames_deviation(update.spectrum, m, n, k)) if model == "spectrum" else None


def _nulls(drawn: Sequence[Mapping[str, float]]) -> dict[str, Null]:
    """Mean and deviation of each measure over the draws."""
    found = {}
    for column in drawn[0] if drawn else ():
        values = [draw[column] for draw in drawn]
        found[column] = Null(fmean(values), stdev(values) if len(values) > 1 else None)
    return found


def link_null(
    a: Weight,
    b: Weight,
    row: Mapping[str, Value],
    link: Mapping[str, Value],
    generators: Sequence[torch.Generator],
    model: Model = "gaussian",
) -> dict[str, Null]:
    """The null model of each measure in `link`, from a to b; `row` has the sizes m, n and k.

    As in `null_columns`, with one update from each of `generators`. The results are the same if the links of a weight
    take their updates in turn from its `null_generators`.
    """
    update = _update(a, b, link["update_norm"])
    if update is None:
        return {}
    k = int(row["k"] or 0)
    exact = _exact_energy(model, update, k)
    drawn = []
    for generator in generators:
        moved, found = _move(a, update.draw(model, generator), k, model)
        drawn.append(found | _turn(a, moved, k))
        del moved
    return ({"principal_energy": exact} if exact else {}) | _nulls(drawn)


def null_generators(seed: int, name: str, draws: int, model: Model = "gaussian") -> list[torch.Generator]:
    """The generators for a weight's draws."""
    return [generator_for(seed, name, "null" if model == "gaussian" else model, str(i)) for i in range(draws)]


def with_null(
    row: Mapping[str, Value],
    nulls: Mapping[str, Null],
    measures: Collection[str] = MEASURES,
    others: Mapping[Model, Mapping[str, Null]] | None = None,
) -> dict[str, Value]:
    """`row` with `x_null_mean`, `x_null_std` and `x_z` for every measure x; None if there is no null model.

    `others`: further models, whose columns are `x_<model>_mean`, `x_<model>_std` and `x_<model>_z`.
    """
    models: dict[Model, Mapping[str, Null]] = {"gaussian": nulls, **(others or {})}
    wide: dict[str, Value] = {}
    for column, value in row.items():
        wide[column] = value
        for model, found in models.items():
            if column in measures and has_null(model, column):
                wide |= _beside(column, value, found.get(column), SUFFIXES_OF[model])
    return wide


def _beside(column: str, value: Value, null: Null | None, suffixes: Sequence[str]) -> dict[str, Value]:
    z = null.z(value) if null is not None and isinstance(value, float | int) else None
    found = (null.mean, null.std, z) if null is not None else (None, None, None)
    return {f"{column}_{suffix}": v for suffix, v in zip(suffixes, found, strict=True)}


def _update(a: Weight, b: Weight, relative: Value) -> RealUpdate | None:
    """W_b - W_a, with its norm relative to W_a; None without an update or without entries."""
    if not isinstance(relative, float) or relative == 0 or a.dense is None:
        return None
    norm = relative * torch.linalg.vector_norm(a.S.double()).item()
    return RealUpdate(tuple(a.dense.shape), norm, a.dense.device, lambda: subtract(b, a))


def _updates(chain: tuple[Weight, Weight, Weight], row: Mapping[str, Value]) -> dict[str, RealUpdate]:
    """Pair -> its update, for pairs that have one."""
    found = {pair: _update(chain[a], chain[b], row[f"update_norm_{pair}"]) for pair, (a, b) in PAIRS.items()}
    return {pair: update for pair, update in found.items() if update is not None}


def _measure_draw(
    chain: tuple[Weight, Weight, Weight],
    updates: Mapping[str, RealUpdate],
    k: int,
    model: Model,
    generator: torch.Generator,
) -> dict[str, float]:
    """Every measure that needs a draw, for one random update per pair."""
    found: dict[str, float] = {}
    middle: Weight | None = None
    for pair, real in updates.items():
        start, state = chain[PAIRS[pair][0]], generator.get_state()
        update = real.draw(model, generator)
        if pair == "12" and middle is not None:
            found |= _compose(chain[0], middle, update)
            middle = None
            del update  # its memory holds the end of the chain
            generator.set_state(state)
            update = real.draw(model, generator)
        moved, measured = _move(start, update, k, model)
        if pair == "01" and update.shape[0] != update.shape[1]:  # else the composition is an identity
            rounded = moved.is_partial and real.norm > LEAST_IN_FLOAT32 * torch.linalg.vector_norm(moved.S).item()
            middle = replace(moved, dense=update.float() if rounded else update)
        del update
        measured |= _turn(start, moved, k)
        found |= {pair_column(field, pair): value for field, value in measured.items()}
    return found


def _move(start: Weight, update: Float[Tensor, "m n"], k: int, model: Model) -> tuple[Weight, dict[str, float]]:
    """The weight with a random update added, in the update's memory, and the measures of the update itself."""
    assert start.dense is not None
    found = {}
    if has_null(model, "update_stable_rank"):
        found["update_stable_rank"] = stable_rank_of(update)
    if model == "permuted":
        found["principal_energy"] = principal_energy(update, start.svd.U[:, :k], start.V[:, :k])
    keep = start.svd.U.shape[1] if start.is_partial else None
    return Weight.of(_add(update, start.dense), keep, entries=False), found


def _add(update: Float[Tensor, "m n"], stored: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
    """The sum, stored in `update`; in chunks, because torch converts a whole summand at once."""
    rows = chunk_rows(update)
    for out, part in zip(update.split(rows), stored.split(rows), strict=True):
        out.add_(part)
    return update


def _turn(start: Weight, moved: Weight, k: int) -> dict[str, float]:
    """The effect of a random update on a weight's singular directions and values."""
    turn = measure_turn(start, moved, k)
    return {field: turn[field] for field in TURN if not _is_whole(field, start, k)}


def _is_whole(field: str, weight: Weight, k: int) -> bool:
    """Whether the sides of an angle have only k directions: the angle is then 0 for any matrices."""
    if not field.startswith("angle"):
        return False
    whole = {"U": weight.svd.U.shape[0] == k, "Vh": weight.svd.Vh.shape[1] == k}
    return whole.get(field.rpartition("_")[2], all(whole.values()))


def _compose(base: Weight, middle: Weight, update: Float[Tensor, "m n"]) -> dict[str, float]:
    """The composition error on the long side; `update` becomes the end of the chain, whose space is enough."""
    assert middle.dense is not None
    side = "U" if update.shape[0] > update.shape[1] else "Vh"
    q0, q1, end = base.span(side), middle.span(side), _add(update, middle.dense)
    assert q0 is not None
    assert q1 is not None
    error = composition_error(q0, q1, span_of(end if side == "U" else end.T))
    return {f"rotation_mse_{side}": error.mse, f"rotation_rel_{side}": error.relative}
