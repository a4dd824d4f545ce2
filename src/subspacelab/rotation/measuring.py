"""Reads, decomposes and measures every weight of a chain, one after another: rows of layers.csv and links.csv."""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from subspacelab.core.callbacks import Progress, no_progress
from subspacelab.core.devices import Processes, choose_device, float64_place, split_by_cost
from subspacelab.core.errors import SettingError
from subspacelab.linalg.svd import svd
from subspacelab.rotation.aggregate import number_columns
from subspacelab.rotation.chain import ROLES, Chain
from subspacelab.rotation.groups import Group, layer_index
from subspacelab.rotation.leading import LOOKED_AT, is_cheaper
from subspacelab.rotation.metrics import (
    CHANGE_FIELDS,
    Value,
    leading_directions,
    measure_link,
    measure_start,
    measure_weight,
    pair_column,
)
from subspacelab.rotation.null_model import (
    ALL_SUFFIXES,
    LINK_MEASURES,
    SUFFIXES_OF,
    has_null,
    link_null,
    null_columns,
    null_generators,
    with_null,
)
from subspacelab.rotation.plan import gflop
from subspacelab.rotation.random_updates import MODELS, Model
from subspacelab.rotation.unfinished import Kept, KeptRows, still_holds
from subspacelab.rotation.weight import Weight

ENDS = ["from", "to"]
"""The columns that identify the link of a row."""
HEAD = ["weight", "module", "layer", *ENDS, "m", "n", "rank", "k"]
COMMON = ["gap_k", *(f"floor_{field}" for field in CHANGE_FIELDS)]
"""Columns of the first checkpoint, which are the same in all links of a weight."""
MEASURED = [
    column
    for field in CHANGE_FIELDS
    for column in (
        field,
        *(
            f"{field}_{suffix}"
            for model in MODELS
            if field in LINK_MEASURES and has_null(model, field)
            for suffix in SUFFIXES_OF[model]
        ),
    )
]
"""The measures of a link, with all their null models."""


def link_pairs(num_checkpoints: int) -> list[str]:
    """Column suffixes of the neighbouring pairs of a chain: 01, 12, 23, ..."""
    return [f"{i}{i + 1}" for i in range(num_checkpoints - 1)]


def wide_column(column: str, pair: str) -> str:
    """The column of a pair in a wide table: `nss_z` is `nss_01_z`, `angle_mean_U` is `angle_mean_01_U`."""
    if column not in MEASURED:
        return column
    suffix = next((f"_{suffix}" for suffix in ALL_SUFFIXES if column.endswith(f"_{suffix}")), "")
    return pair_column(column.removesuffix(suffix), pair) + suffix


def links_of(layers: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """The links in a wide table of layers: two rows per weight for the three checkpoints `names`."""
    tables = []
    for pair, (a, b) in zip(link_pairs(len(names)), pairwise(names), strict=True):
        measured = {wide_column(column, pair): column for column in MEASURED}
        columns = [c for c in layers if c in HEAD or c in COMMON or c in measured]
        tables.append(layers[columns].rename(columns=measured).assign(**{"from": a, "to": b}))
    links = pd.concat(tables).sort_index(kind="stable").reset_index(drop=True)
    return links[[c for c in (*HEAD, *MEASURED, *COMMON) if c in links]]


def wide_of(links: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """One row per `keys` with the columns of every link side by side, for pictures and curves."""
    ends = list(links[ENDS].drop_duplicates().itertuples(index=False, name=None))
    tables: list[pd.DataFrame] = []
    for pair, (a, b) in zip(link_pairs(len(ends) + 1), ends, strict=True):
        rows = links[(links["from"] == a) & (links["to"] == b)].set_index(list(keys)).drop(columns=ENDS)
        rows.columns = [wide_column(column, pair) for column in rows]
        tables.append(rows if not tables else rows.drop(columns=tables[0].columns, errors="ignore"))
    return pd.concat(tables, axis=1).copy().reset_index()  # copied, as pandas warns of frames in many pieces


LONG = 1000.0
"""GFLOP of null models above which fewer draws are suggested: about a minute on 2 cores."""
TOLD = 100.0
"""GFLOP above which the cost is printed before the start."""
AFFORDABLE = 50_000.0
"""GFLOP up to which `auto` takes 3 draws: about half an hour on 2 cores."""
Draws = int | Literal["auto"]


@dataclass(frozen=True)
class Settings:
    """Settings of a measurement."""

    k: int | None = None
    """Number of leading directions; None: the smaller of the rank and 64."""
    seed: int = 42
    """Seed of every random draw."""
    null_draws: Draws = 0
    """Random updates per weight, pair and null model; auto: 3, or 1 if they cost more than `AFFORDABLE`."""
    device: str = "auto"
    """Device of the computation."""
    null_models: tuple[str, ...] = ()
    """Null models in `random_updates.MODELS` in addition to the Gaussian one."""

    def __post_init__(self) -> None:
        if self.k is not None and self.k < 1:
            raise SettingError(f"k={self.k}: at least 1 leading direction")
        if self.null_draws != "auto" and self.null_draws < 0:
            raise SettingError(f"null_draws={self.null_draws}: 0 or more, or auto")
        for model in self.null_models:
            if model not in MODELS:
                raise SettingError(f"null_models: no model {model!r}; there are {', '.join(MODELS[1:])}")

    @property
    def models(self) -> tuple[Model, ...]:
        """All null models, each once; the Gaussian one, which the summaries use, is always first."""
        return tuple(model for model in MODELS if model == "gaussian" or model in self.null_models)

    def for_chain(self, chain: Chain) -> "Settings":
        """The same settings with `auto` replaced by a number of draws."""
        if self.null_draws != "auto":
            return self
        three = replace(self, null_draws=3)
        cost = sum(weight_gflop(chain, name, three) for name in chain.names)
        return three if cost <= AFFORDABLE else replace(self, null_draws=1)

    @property
    def job(self) -> dict[str, Any]:
        """Settings that determine the rows of a weight."""
        return {key: value for key, value in asdict(self).items() if key != "device"}


@dataclass(frozen=True)
class Measured:
    """Measures of all weights."""

    layers: pd.DataFrame
    """A row per weight (for a chain of three), or per weight and link."""
    spectra: dict[str, Float[Tensor, "checkpoints r"]]
    """Weight -> its singular values in each checkpoint."""


def measure_chain(
    chain: Chain,
    groups: Sequence[Group],
    settings: Settings,
    progress: Progress = no_progress,
    kept: KeptRows | None = None,
    group: Processes | None = None,
) -> Measured:
    """Measures every weight that the checkpoints of a chain share; of more than three, or two, link by link.

    Finished rows of each weight are written to `kept`; those that exist and are up to date are not measured again.
    Through `kept` the processes of `group` share the weights; each returns all of them.
    """
    settings, group = settings.for_chain(chain), (group if kept else None) or Processes()
    target = float64_place(choose_device(settings.device))
    costs = {name: weight_gflop(chain, name, settings) for name in chain.names}
    found = kept.read() if kept else {}
    group.wait()  # all have seen the same before anything changes
    names = [chain.names[i] for i in split_by_cost(list(costs.values()), group.count)[group.rank]]
    total = sum(costs[name] for name in names)
    if progress is not no_progress:
        without = sum(weight_gflop(chain, name, replace(settings, null_draws=0)) for name in names)
        say_cost(total, total - without, target)
    with progress("compare", total, "GFLOP") as advance:
        for name in sorted(names):
            if not (name in found and still_holds(found[name], chain.digests(name))):
                found[name] = measure_rows(chain, name, settings, target)
                if kept:
                    kept.keep(name, found[name])
            advance(costs[name])
    group.wait()
    if kept and group.count > 1:
        found = kept.read()
    labels = {name: member.label for member in reversed(groups) for name in member.members}
    rows: list[dict[str, Value]] = []
    for name in chain.names:
        head: dict[str, Value] = {"weight": name, "module": labels.get(name, ""), "layer": layer_index(name)}
        rows += [head | row for row in found[name].rows]
    return Measured(typed(pd.DataFrame(rows)), {name: found[name].spectra for name in chain.names})


def typed(layers: pd.DataFrame) -> pd.DataFrame:
    """The table with one dtype per column; a column with only None would otherwise have dtype object."""
    kinds: dict[str, Any] = {"layer": "Int64", "identity_U": bool, "identity_Vh": bool}
    kinds |= {c: "int64" if c.startswith("num_") else float for c in number_columns(layers)}
    return layers.astype({column: kind for column, kind in kinds.items() if column in layers})


def say_cost(total: float, of_draws: float, device: torch.device | None = None) -> None:
    """Prints the cost of long work in one line, at the speed of a short trial on this machine."""
    if total <= TOLD:
        return
    rate = _measured_rate(device or torch.device("cpu"))
    minutes = total / rate / 60
    said = f"note: {total:,.0f} GFLOP, about {minutes:.2g} minutes at the {rate:.3g} GFLOP/s of a trial"
    if of_draws > 0:
        said += f"; {of_draws:,.0f} of them are the null models"
    if of_draws > LONG:
        said += ": fewer `null_draws` (--null) are quicker, 0 leaves them out"
    print(said, file=sys.stderr)


def _measured_rate(device: torch.device) -> float:
    """GFLOP per second of a decomposition of 512 x 512, the second of two; takes a fraction of a second."""
    w = torch.randn(512, 512, generator=torch.Generator().manual_seed(0)).to(device)
    for _ in range(2):
        start = time.perf_counter()
        svd(w).S.cpu()
        seconds = time.perf_counter() - start
    return gflop((512, 512)) / seconds


def weight_gflop(chain: Chain, name: str, settings: Settings) -> float:
    """Cost of a weight: decompositions for bf16 noise, for streamed weights, and for draws if the entries are known."""
    assert settings.null_draws != "auto"
    pairs = 3 if len(chain.checkpoints) == len(ROLES) else len(chain.checkpoints) - 1
    draws = settings.null_draws * len(settings.models) * chain.is_full(name)
    shape = chain.shape(name)
    if chain.num_streamed == 0:
        return (1 + draws * pairs) * gflop(shape)
    leading, spans, spans_of_draw, composition = gflop(shape), 0, 0, 0.0
    if is_cheaper(directions_needed(settings.k, shape), shape):
        leading = _leading_gflop(shape)
        if len(chain.checkpoints) == len(ROLES) and shape[0] != shape[1]:
            spans, spans_of_draw = 5, 2  # of the chain, the noise and a random middle; of a middle and an end
            composition = 3 * 2 * max(shape) * min(shape) ** 2 / 1e9  # three products of two bases
    once = (chain.num_streamed + 1 + spans) * leading + 4 * composition
    return once + draws * ((pairs + spans_of_draw) * leading + composition)


def _leading_gflop(shape: tuple[int, int]) -> float:
    """As `plan.gflop`, for the leading triples and all singular values, or for a `Span` (measured: a third at 2048 x
    2048)."""
    short, long = min(shape), max(shape)
    return (2 * long * short**2 + 4 * short**3) / 1e9


def directions_needed(k: int | None, shape: tuple[int, int]) -> int:
    """How many leading triples of a weight its rows need; rotations are composed from spaces, not from directions."""
    return max(leading_directions(k, min(shape)), LOOKED_AT)


Seen = tuple[str, Tensor]
"""Digest and singular values of a weight in one checkpoint."""


def measure_rows(chain: Chain, name: str, settings: Settings, device: torch.device) -> Kept:
    """The rows of one weight, its singular values, and its digests."""
    seen: list[Seen] = []
    measure = _chain_of_three if len(chain.checkpoints) == len(ROLES) else _links
    rows = list(measure(chain, name, settings, device, seen))
    digests, spectra = zip(*seen, strict=True)
    return Kept(list(digests), rows, torch.stack(spectra))


def _see(weight: Weight) -> Seen:
    return weight.digest, weight.S.cpu()


def _chain_of_three(
    chain: Chain, name: str, settings: Settings, device: torch.device, seen: list[Seen]
) -> Iterator[dict[str, Value]]:
    base, stage1, stage2 = chain.read(name, device, directions_needed(settings.k, chain.shape(name)))
    seen += map(_see, (base, stage1, stage2))
    row = measure_weight(name, (base, stage1, stage2), k=settings.k, seed=settings.seed)
    draws = settings.null_draws
    if draws:
        assert draws != "auto"
        stage1, stage2 = replace(stage1), replace(stage2)  # without their spans, as draws take room
        nulls = {
            model: null_columns(name, (base, stage1, stage2), row, seed=settings.seed, draws=draws, model=model)
            for model in settings.models
        }
        row = with_null(row, nulls.pop("gaussian"), others=nulls)
    yield row


def _links(
    chain: Chain, name: str, settings: Settings, device: torch.device, seen: list[Seen]
) -> Iterator[dict[str, Value]]:
    """One row per link, with two checkpoints in memory at a time."""
    walk = chain.walk(name, device, directions_needed(settings.k, chain.shape(name)))
    a = next(walk)
    seen.append(_see(a))
    start = measure_start(name, a, k=settings.k, seed=settings.seed)
    sizes = {column: start[column] for column in HEAD if column in start}
    common = {column: value for column, value in start.items() if column not in sizes}
    draws = settings.null_draws
    assert draws != "auto"
    generators = {model: null_generators(settings.seed, name, draws, model) for model in settings.models}
    for ends, b in zip(pairwise(chain.labels), walk, strict=True):
        seen.append(_see(b))
        link = measure_link(a, b, start)
        if draws:
            nulls = {model: link_null(a, b, start, link, of, model) for model, of in generators.items()}
            link = with_null(link, nulls.pop("gaussian"), LINK_MEASURES, nulls)
        yield dict(zip(ENDS, ends, strict=True)) | sizes | link | common
        a = b
