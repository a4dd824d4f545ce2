"""One row of layers.csv: everything that is measured of one weight in a chain of three checkpoints."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict

import torch

from subspacelab.linalg.composition import composition_error
from subspacelab.linalg.spectra import spectral_gap
from subspacelab.linalg.svd import svd
from subspacelab.rotation.floor import bf16_neighbour
from subspacelab.rotation.measures import Change, measure_change, measure_course, measure_rotation
from subspacelab.rotation.weights import Weight

Value = float | int | bool | str | None
PAIRS = {"01": (0, 1), "12": (1, 2), "02": (0, 2)}
SIDES = ("U", "Vh")
CHANGE_FIELDS = tuple(Change.__dataclass_fields__)
LARGEST_DEFAULT_K = 64
MIN_GAP = 1.05  # below, any small update turns some of the leading k directions far: the largest angle tells nothing


def pair_column(field: str, pair: str) -> str:
    """Name of the column of a measure for a pair of checkpoints: the side, where there is one, comes last."""
    for side in SIDES:
        if field.endswith(f"_{side}"):
            return f"{field.removesuffix(f'_{side}')}_{pair}_{side}"
    return f"{field}_{pair}"


def generator_for(seed: int, *names: str) -> torch.Generator:
    """A generator that depends on `seed` and the names only, not on the other weights or their order."""
    digest = hashlib.sha256(" ".join([str(seed), *names]).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def measure_weight(name: str, chain: tuple[Weight, Weight, Weight], *, k: int | None, seed: int) -> dict[str, Value]:
    """All measures of weight `name` along base, stage 1, stage 2; None where one is undefined or not to be had.

    `k` leading directions are compared, or all there are if fewer (None: 64). Where the gap s_k / s_(k+1) of the base
    is below 1.05, `angle_max_*` is None.
    """
    base = chain[0].svd
    (m, r), n = base.U.shape, base.Vh.shape[1]
    k = min(k or LARGEST_DEFAULT_K, r)
    row: dict[str, Value] = {"m": m, "n": n, "rank": r, "k": k}
    row |= _rotation_columns(name, chain, seed)
    changes = {pair: asdict(measure_change(chain[a], chain[b], k)) for pair, (a, b) in PAIRS.items()}
    row |= {pair_column(field, pair): changes[pair][field] for field in CHANGE_FIELDS for pair in PAIRS}
    gap = spectral_gap(base.S, k)
    row |= {"gap_k": gap, "cosine_01_12": measure_course(*chain)}
    row |= _floor_columns(name, chain[0], k, seed)
    if gap < MIN_GAP:
        row |= {column: None for column in row if "angle_max" in column}
    return {column: _finite(value) for column, value in row.items()}


def _rotation_columns(name: str, chain: tuple[Weight, Weight, Weight], seed: int) -> Mapping[str, Value]:
    measured = {}
    for side in SIDES:
        q0, q1, q2 = (weight.basis(side) for weight in chain)
        measured[side] = measure_rotation(q0, q1, q2, generator_for(seed, name, "random", side))
    columns = {
        "rotation_mse": "mse",
        "rotation_rel": "relative",
        "identity": "identity",
        "random_mse": "random_mse",
        "oracle_mse": "oracle_mse",
    }
    return {f"{column}_{side}": getattr(measured[side], f) for column, f in columns.items() for side in SIDES}


def _floor_columns(name: str, base: Weight, k: int, seed: int) -> Mapping[str, Value]:
    """The chain base -> its bf16 neighbour -> base, and the pair base, neighbour."""
    columns = [f"rotation_mse_{side}" for side in SIDES] + list(CHANGE_FIELDS)
    if base.dense is None:
        return {f"floor_{column}": None for column in columns}
    dense = bf16_neighbour(base.dense, generator_for(seed, name, "floor"))
    near = Weight(svd(dense, device=dense.device), dense)
    mse = [composition_error(*(w.basis(side) for w in (base, near, base))).mse for side in SIDES]
    values = [*mse, *asdict(measure_change(base, near, k)).values()]
    return {f"floor_{column}": value for column, value in zip(columns, values, strict=True)}


def _finite(value: Value) -> Value:
    return None if isinstance(value, float) and not math.isfinite(value) else value
