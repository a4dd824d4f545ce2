"""Three decomposed checkpoints of one model compared, weight by weight: base -> stage 1 -> stage 2."""

import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from subspacelab.core.callbacks import Progress, no_progress
from subspacelab.core.devices import choose_device, float64_place
from subspacelab.core.files import write_csv, write_json
from subspacelab.rotation.aggregate import (
    curve_table,
    describe,
    describe_identities,
    headline,
    module_table,
    number_columns,
    standing_out,
)
from subspacelab.rotation.chain import ROLES, Chain
from subspacelab.rotation.groups import Group, layer_index, make_groups
from subspacelab.rotation.metrics import MIN_GAP, Value, measure_weight
from subspacelab.rotation.null_model import false_alarm_rate, null_columns, with_null
from subspacelab.rotation.plan import gflop

TABLES = ("layers.csv", "modules.csv", "curves.csv", "metrics.json")
"""What `Comparison.save` writes."""
LONG = 1000.0
"""GFLOP of null models beyond which their cost is said first: about a minute on 2 cores."""


@dataclass(frozen=True)
class Comparison:
    """What `compare` found."""

    layers: pd.DataFrame
    """One row per weight."""
    modules: pd.DataFrame
    """One row per group."""
    curves: pd.DataFrame
    """One row per group and layer."""
    metrics: dict[str, Any]
    """Means and deviations over all weights and per group, identity sides apart."""
    groups: tuple[Group, ...]
    """Which weights belong together."""
    chain: Chain = field(repr=False)
    """What was compared."""

    @property
    def unmatched(self) -> dict[str, str]:
        """Weights that could not be compared, with the reason."""
        return {entry["weight"]: entry["reason"] for entry in self.metrics["unmatched"]}

    @property
    def notes(self) -> list[str]:
        """What a reader should know of the numbers."""
        return list(self.metrics["notes"])

    @property
    def headline(self) -> dict[str, float]:
        """The few metrics that a person compares: `rotation.aggregate.headline`."""
        return headline(self.layers)

    def save(self, folder: Path, *, metrics: str = "metrics.json") -> None:
        """Writes layers.csv, modules.csv, curves.csv and, under its name, `metrics`."""
        for name, table in {"layers": self.layers, "modules": self.modules, "curves": self.curves}.items():
            write_csv(folder / f"{name}.csv", table)
        write_json(folder / metrics, self.metrics)


def compare(
    chain: Chain,
    *,
    k: int | None = None,
    modules: Mapping[str, str] | None = None,
    seed: int = 42,
    null_draws: int = 3,
    device: str = "auto",
    progress: Progress = no_progress,
) -> Comparison:
    """Measures every weight that the three checkpoints of a chain share.

    `k` leading directions are compared, or all a weight has if fewer (None: min(rank, 64)). `modules` adds groups,
    label to comma-separated names or patterns. `null_draws` random updates of each weight and pair make the null model
    (0: none). The columns are described in `rotation.metrics` and `rotation.null_model`.

    Raises ValueError for a pattern that means nothing, and settings out of range.
    """
    if k is not None and k < 1:
        raise ValueError(f"k={k}: at least 1 leading direction")
    if null_draws < 0:
        raise ValueError(f"null_draws={null_draws}: 0 or more")
    groups = make_groups(chain.names, modules)
    layers = measure_chain(chain, groups, k=k, seed=seed, null_draws=null_draws, device=device, progress=progress)
    summaries = {group.label: describe(layers[layers["weight"].isin(group.members)]) for group in groups}
    metrics = {
        "all": describe(layers),
        "groups": summaries,
        "identity": describe_identities(layers),
        "unmatched": [{"weight": name, "reason": reason} for name, reason in chain.unmatched.items()],
        "notes": note_limits(layers, chain, null_draws),
        "null": {"model": "gaussian", "draws": null_draws, "standing_out": standing_out(layers)},
        "k": k,
        "seed": seed,
        "sources": chain.sources,
    }
    return Comparison(layers, module_table(summaries), curve_table(layers, groups), metrics, tuple(groups), chain)


def measure_chain(
    chain: Chain,
    groups: list[Group],
    *,
    k: int | None = None,
    seed: int = 42,
    null_draws: int = 0,
    device: str = "auto",
    progress: Progress = no_progress,
) -> pd.DataFrame:
    """layers.csv as a table: one row per weight that the chain's checkpoints share; arguments as in `compare`."""
    target = float64_place(choose_device(device))
    labels = {name: group.label for group in reversed(groups) for name in group.members}
    rows: list[dict[str, Value]] = []
    costs = {name: _gflop(chain, name, null_draws) for name in chain.names}
    added = sum(costs.values()) - sum(_gflop(chain, name, 0) for name in chain.names)
    if added > LONG:
        print(
            f"note: the null model is {added:,.0f} GFLOP of {sum(costs.values()):,.0f}; fewer draws (--null 1) or none "
            "(--null 0) are quicker",
            file=sys.stderr,
        )
    with progress("compare", sum(costs.values()), "GFLOP") as advance:
        for name in chain.names:
            row: dict[str, Value] = {"weight": name, "module": labels.get(name, ""), "layer": layer_index(name)}
            weights = chain.read(name, target)
            row |= measure_weight(name, weights, k=k, seed=seed)
            if null_draws:
                row = with_null(row, null_columns(name, weights, row, seed=seed, draws=null_draws))
            rows.append(row)
            advance(costs[name])
    layers = pd.DataFrame(rows).astype({"layer": "Int64", "identity_U": bool, "identity_Vh": bool})
    # A column of None alone would otherwise be of type object.
    return layers.astype(dict.fromkeys(number_columns(layers), float))


def _gflop(chain: Chain, name: str, null_draws: int) -> float:
    """Cost of a weight: the floor's decomposition, and three more per draw where the entries are to be had."""
    return gflop(chain.shape(name)) * (1 + 3 * null_draws * chain.is_full(name))


def note_limits(layers: pd.DataFrame, chain: Chain, null_draws: int = 0) -> list[str]:
    """What these numbers cannot say, in sentences: of types, gaps, truncation, whole sides, square weights, draws."""
    notes = [
        f"{count} weights are stored as {', '.join(f'{t} in {role}' for role, t in zip(ROLES, types, strict=True))}: "
        "their updates hold the rounding from one type to the other"
        for types, count in Counter(map(chain.storage, chain.names)).items()
        if len(set(types)) > 1
    ]
    wide = sum(chain.is_full(name) and not {"F16", "BF16"}.issuperset(chain.storage(name)) for name in chain.names)
    if wide:
        notes.append(
            f"in {wide} weights stored in 32 bits or more, an entry that moved by less than their float32 factors can "
            "tell (some 5e-7 of a typical entry) counts as unchanged and is no part of the update"
        )
    narrow = int((layers["gap_k"] < MIN_GAP).sum())
    if narrow:
        notes.append(
            f"in {narrow} weights the gap sigma_k / sigma_(k+1) is below {MIN_GAP}: the leading k directions are "
            "hardly determined, and angle_max_* is empty"
        )
    truncated = sum(not chain.is_full(name) for name in chain.names)
    if truncated:
        notes.append(
            f"{truncated} weights keep only their leading singular triples: update_*, unchanged_*, principal_energy_*, "
            "cosine_01_12, floor_* and the null models need all of them and are empty"
        )
    for side, size in (("U", "m"), ("Vh", "n")):
        whole = int((layers["k"] == layers[size]).sum())
        if whole:
            notes.append(
                f"in {whole} weights the {side} side has only k directions: its principal angles are 0 for any matrices"
            )
    identities = int((layers["identity_U"] & layers["identity_Vh"]).sum())
    if identities:
        notes.append(
            f"{identities} weights are square, an identity on both sides: rotation_mse says nothing of them "
            "(decompose with a rank below their size to test them)"
        )
    sparse = int((layers["unchanged_02"] > 0.5).sum())
    if null_draws and sparse:
        notes.append(
            f"in {sparse} weights more than half of the entries are unchanged: random updates spread over all entries, "
            "and an update of few rows differs from theirs by that alone"
        )
    if null_draws > 1:
        rates = " and ".join(f"|z| > {z} in {false_alarm_rate(z, null_draws):.2g}" for z in (3, 5))
        notes.append(
            f"z of a weight rests on {null_draws} random updates: by chance alone {rates} of the columns, more often "
            "of angles and composition errors, which are skewed (energy and cosine need no draws: 0.003 and below 1e-4 "
            "from k = 16 on)"
        )
    return notes
