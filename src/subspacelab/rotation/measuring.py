"""Every weight of a chain read, decomposed and measured, one after the other: the rows of layers.csv and links.csv."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from subspacelab.core.callbacks import Progress, no_progress
from subspacelab.core.devices import choose_device, float64_place
from subspacelab.rotation.aggregate import number_columns
from subspacelab.rotation.chain import Chain
from subspacelab.rotation.groups import Group, layer_index
from subspacelab.rotation.metrics import CHANGE_FIELDS, Value, measure_link, measure_start, measure_weight, pair_column
from subspacelab.rotation.null_model import LINK_MEASURES, SUFFIXES, link_null, null_columns, null_generators, with_null
from subspacelab.rotation.plan import gflop

ENDS = ["from", "to"]
"""The columns that say which link a row is of."""
HEAD = ["weight", "module", "layer", *ENDS, "m", "n", "rank", "k"]
COMMON = ["gap_k", *(f"floor_{field}" for field in CHANGE_FIELDS)]
"""Of the first checkpoint, and so the same in all links of a weight."""
MEASURED = [
    column
    for field in CHANGE_FIELDS
    for column in (field, *(f"{field}_{suffix}" for suffix in SUFFIXES if field in LINK_MEASURES))
]
"""What is measured of a link, with its null model."""


def link_pairs(num_checkpoints: int) -> list[str]:
    """The neighbouring pairs of a chain as the suffixes of columns: 01, 12, 23, ..."""
    return [f"{i}{i + 1}" for i in range(num_checkpoints - 1)]


def wide_column(column: str, pair: str) -> str:
    """The column of a pair in a wide table: `nss_z` is `nss_01_z`, `angle_mean_U` is `angle_mean_01_U`."""
    if column not in MEASURED:
        return column
    suffix = next((f"_{suffix}" for suffix in SUFFIXES if column.endswith(f"_{suffix}")), "")
    return pair_column(column.removesuffix(suffix), pair) + suffix


def links_of(layers: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """The links of a wide table of layers: two rows per weight for the three checkpoints `names`."""
    tables = []
    for pair, (a, b) in zip(link_pairs(len(names)), pairwise(names), strict=True):
        measured = {wide_column(column, pair): column for column in MEASURED}
        columns = [c for c in layers if c in HEAD or c in COMMON or c in measured]
        tables.append(layers[columns].rename(columns=measured).assign(**{"from": a, "to": b}))
    links = pd.concat(tables).sort_index(kind="stable").reset_index(drop=True)
    return links[[c for c in (*HEAD, *MEASURED, *COMMON) if c in links]]


def wide_of(links: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """One row per `keys` with the columns of every link side by side, as pictures and curves take them."""
    ends = list(links[ENDS].drop_duplicates().itertuples(index=False, name=None))
    tables: list[pd.DataFrame] = []
    for pair, (a, b) in zip(link_pairs(len(ends) + 1), ends, strict=True):
        rows = links[(links["from"] == a) & (links["to"] == b)].set_index(list(keys)).drop(columns=ENDS)
        rows.columns = [wide_column(column, pair) for column in rows]
        tables.append(rows if not tables else rows.drop(columns=tables[0].columns, errors="ignore"))
    return pd.concat(tables, axis=1).copy().reset_index()  # copied, as pandas warns of frames in many pieces


LONG = 1000.0
"""GFLOP of null models beyond which their cost is said first: about a minute on 2 cores."""


@dataclass(frozen=True)
class Settings:
    """How a chain is measured."""

    k: int | None = None
    """Leading directions; None: the smaller of the rank and 64."""
    seed: int = 42
    """Of every random draw."""
    null_draws: int = 0
    """Random updates per weight and pair."""
    device: str = "auto"
    """Where to compute."""


@dataclass(frozen=True)
class Measured:
    """What was measured of all weights."""

    layers: pd.DataFrame
    """A row per weight (of a chain of three), or per weight and link."""
    spectra: dict[str, Float[Tensor, "checkpoints r"]]
    """Weight to its singular values in each checkpoint."""


def measure_chain(
    chain: Chain, groups: Sequence[Group], settings: Settings, progress: Progress = no_progress
) -> Measured:
    """Measures every weight that the checkpoints of a chain share; of more than three, or two, link by link."""
    target = float64_place(choose_device(settings.device))
    labels = {name: group.label for group in reversed(groups) for name in group.members}
    measure = _chain_of_three if len(chain.checkpoints) == 3 else _links
    rows: list[dict[str, Value]] = []
    spectra: dict[str, Tensor] = {}
    costs = {name: _gflop(chain, name, settings.null_draws) for name in chain.names}
    if progress is not no_progress:
        say_cost(sum(costs.values()), sum(costs.values()) - sum(_gflop(chain, name, 0) for name in chain.names))
    with progress("compare", sum(costs.values()), "GFLOP") as advance:
        for name in chain.names:
            head: dict[str, Value] = {"weight": name, "module": labels.get(name, ""), "layer": layer_index(name)}
            found: list[Tensor] = []
            rows += [head | row for row in measure(chain, name, settings, target, found)]
            spectra[name] = torch.stack(found)
            advance(costs[name])
    return Measured(typed(pd.DataFrame(rows)), spectra)


def typed(layers: pd.DataFrame) -> pd.DataFrame:
    """A table with one type per column; a column of None alone would otherwise be of type object."""
    kinds: dict[str, Any] = {"layer": "Int64", "identity_U": bool, "identity_Vh": bool}
    kinds |= {c: "int64" if c.startswith("num_") else float for c in number_columns(layers)}
    return layers.astype({column: kind for column, kind in kinds.items() if column in layers})


def say_cost(total: float, of_draws: float) -> None:
    """One line where the null models, of `total` GFLOP, take long: for who is shown the progress."""
    if of_draws > LONG:
        print(
            f"note: the null model is {of_draws:,.0f} GFLOP of {total:,.0f}; fewer draws (--null 1) or none "
            "(--null 0) are quicker",
            file=sys.stderr,
        )


def _gflop(chain: Chain, name: str, null_draws: int) -> float:
    """Cost of a weight: decompositions for the floor, for what is streamed, and of draws where the entries are had."""
    pairs = 3 if len(chain.checkpoints) == 3 else len(chain.checkpoints) - 1
    return gflop(chain.shape(name)) * (1 + chain.num_streamed + pairs * null_draws * chain.is_full(name))


def _chain_of_three(
    chain: Chain, name: str, settings: Settings, device: torch.device, spectra: list[Tensor]
) -> Iterator[dict[str, Value]]:
    base, stage1, stage2 = weights = chain.read(name, device)
    spectra += [weight.svd.S.cpu() for weight in weights]
    row = measure_weight(name, (base, stage1, stage2), k=settings.k, seed=settings.seed)
    if settings.null_draws:
        nulls = null_columns(name, (base, stage1, stage2), row, seed=settings.seed, draws=settings.null_draws)
        row = with_null(row, nulls)
    yield row


def _links(
    chain: Chain, name: str, settings: Settings, device: torch.device, spectra: list[Tensor]
) -> Iterator[dict[str, Value]]:
    """A row per link, with two of the checkpoints in memory at a time."""
    walk = chain.walk(name, device)
    a = next(walk)
    spectra.append(a.svd.S.cpu())
    start = measure_start(name, a, k=settings.k, seed=settings.seed)
    sizes = {column: start[column] for column in HEAD if column in start}
    common = {column: value for column, value in start.items() if column not in sizes}
    generators = null_generators(settings.seed, name, settings.null_draws)
    for ends, b in zip(pairwise(chain.labels), walk, strict=True):
        spectra.append(b.svd.S.cpu())
        link = measure_link(a, b, start)
        if generators:
            link = with_null(link, link_null(a, start, link, generators), LINK_MEASURES)
        yield dict(zip(ENDS, ends, strict=True)) | sizes | link | common
        a = b
