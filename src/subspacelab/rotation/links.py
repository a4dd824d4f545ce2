"""Tables of links, a row per weight and pair of neighbouring checkpoints, and wide ones with a column per pair."""

from collections.abc import Sequence
from itertools import pairwise

import pandas as pd

from subspacelab.rotation.metrics import CHANGE_FIELDS, pair_column
from subspacelab.rotation.null_model import LINK_MEASURES, SUFFIXES

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
