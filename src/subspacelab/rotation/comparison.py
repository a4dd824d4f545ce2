"""Comparison of checkpoints of one model, weight by weight: two, or a chain of three or more."""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from subspacelab.checkpoints import read_tensors, write_tensors
from subspacelab.core.callbacks import Progress, no_progress
from subspacelab.core.devices import Processes
from subspacelab.core.files import read_json, write_csv, write_json
from subspacelab.rotation.aggregate import (
    curve_table,
    describe,
    describe_identities,
    headline,
    link_headline,
    module_table,
    note_limits,
    say_findings,
    standing_out,
)
from subspacelab.rotation.chain import Chain, Place, open_chain
from subspacelab.rotation.groups import Group, make_groups
from subspacelab.rotation.measuring import ENDS, Draws, Settings, links_of, measure_chain, typed
from subspacelab.rotation.null_model import LINK_MEASURES, MEASURES
from subspacelab.rotation.unfinished import KeptRows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TABLES = ("layers.csv", "modules.csv", "curves.csv", "metrics.json")
"""Files that `Comparison.save` always writes."""
LINKS, SPECTRA = "links.csv", "spectra.safetensors"
"""Further files: the long table; singular values and the members of the groups."""
GROUPS_KEY = "groups"


@dataclass(frozen=True)
class Comparison:
    """The result of `compare`.

    >>> found = compare("org/base", "org/tuned")
    >>> found.layers[["weight", "update_norm", "angle_mean", "angle_mean_null_mean"]]
    >>> found.save(Path("out")); Comparison.load(Path("out")).plot("angles")
    """

    layers: pd.DataFrame
    """For three checkpoints, one row per weight with a column per measure and pair (01, 12, 02); else the same as
    `links`."""
    modules: pd.DataFrame
    """One row per group (and per link unless there are three checkpoints): means, deviations and null models."""
    curves: pd.DataFrame
    """One row per group and layer (and link): means."""
    metrics: dict[str, Any]
    """Means and deviations over all weights and per group, outstanding measures, notes, settings, sources."""
    groups: tuple[Group, ...]
    """Groups of weights."""
    spectra: Mapping[str, Float[Tensor, "checkpoints r"]] = field(repr=False)
    """Weight -> its singular values in each checkpoint; empty if the loaded folder has none."""

    @property
    def is_chain_of_three(self) -> bool:
        """Whether the tables have a column per pair of base, stage1, stage2, and measure how rotations compose."""
        return "sources" in self.metrics

    @property
    def names(self) -> tuple[str, ...]:
        """The checkpoints' labels in the tables, in order."""
        return ("base", "stage1", "stage2") if self.is_chain_of_three else tuple(c["name"] for c in self._checkpoints)

    @property
    def _checkpoints(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.metrics["checkpoints"]
        return found

    @property
    def links(self) -> pd.DataFrame:
        """One row per weight and pair of neighbouring checkpoints: `from`, `to`, and the columns of `metrics.Change`.

        Each with its null model (`x_null_mean`, `x_null_std`, `x_z`), and with `gap_k` and `floor_*` of the first
        checkpoint, which are the same in all links of a weight.
        """
        return links_of(self.layers, self.names) if self.is_chain_of_three else self.layers

    @property
    def unmatched(self) -> dict[str, str]:
        """Weights that could not be compared, with the reason."""
        return {entry["weight"]: entry["reason"] for entry in self.metrics["unmatched"]}

    @property
    def notes(self) -> list[str]:
        """Notes for the reader of the numbers."""
        return list(self.metrics["notes"])

    @property
    def summary(self) -> list[str]:
        """The measures that differ from random updates: one sentence for three checkpoints, else one per link."""
        if not self.metrics["null"]["draws"]:
            return []
        if self.is_chain_of_three:
            columns = [c for c in MEASURES if "_02" in c or c.startswith(("cosine", "rotation_mse"))]
            return [f"base -> stage2: {say_findings(self.metrics['all'], _both_sides(columns))}"]
        columns = _both_sides(LINK_MEASURES)
        return [
            f"{link['from']} -> {link['to']}: {say_findings(link['all'], columns)}" for link in self.metrics["links"]
        ]

    @property
    def headline(self) -> dict[str, float]:
        """The headline numbers: `aggregate.headline` for three checkpoints, else `link_headline`."""
        return headline(self.layers) if self.is_chain_of_three else link_headline(self.layers)

    def save(self, folder: Path | str, *, metrics: str = "metrics.json", details: bool = True) -> None:
        """Writes layers.csv, modules.csv, curves.csv and, under its name, `metrics`; `load` reads them.

        `details` adds links.csv, spectra.safetensors and the pictures. Files of an earlier comparison are replaced;
        ValueError for other files of these names.
        """
        folder = Path(folder)
        readers: dict[str, Callable[[Path], Any]] = dict.fromkeys(TABLES[:3], _read_table) | {metrics: _read_metrics}
        for name, read in readers.items():
            if os.path.lexists(folder / name):
                read(folder / name)
        for name, table in {"layers": self.layers, "modules": self.modules, "curves": self.curves}.items():
            write_csv(folder / f"{name}.csv", table)
        write_json(folder / metrics, self.metrics)
        if details:
            from subspacelab.rotation.plots import draw_pictures

            self.save_links(folder)
            draw_pictures(folder, self)

    def save_links(self, folder: Path) -> None:
        """Writes links.csv and spectra.safetensors."""
        groups = json.dumps({group.label: group.members for group in self.groups})
        write_csv(folder / LINKS, self.links)
        write_tensors(folder / SPECTRA, self.spectra, (GROUPS_KEY, groups))

    @classmethod
    def load(cls, folder: Path | str, *, metrics: str = "metrics.json") -> "Comparison":
        """Reads what `save` wrote; without spectra.safetensors, there are no spectra and only the default groups.

        Raises ValueError, naming the file, if one is missing or damaged.
        """
        folder = Path(folder)
        layers, modules, curves = (_read_table(folder / name) for name in TABLES[:3])
        found = _read_metrics(folder / metrics)
        if (folder / SPECTRA).exists():
            spectra, said = read_tensors(folder / SPECTRA)
            groups = tuple(Group(label, members) for label, members in json.loads(said[GROUPS_KEY]).items())
        else:
            spectra, groups = {}, tuple(make_groups(layers["weight"].unique()))
        return cls(layers, modules, curves, found, groups, spectra)

    def plot(self, kind: str) -> "Figure":
        """A figure: "angles", "spectra", "updates" or, for three checkpoints, "rotation"; else SettingError."""
        from subspacelab.rotation.plots import draw

        return draw(self, kind)


def compare(
    *checkpoints: Place,
    k: int | None = None,
    modules: Mapping[str, str] | None = None,
    include: str | None = None,
    exclude: str | None = None,
    seed: int = 42,
    null_draws: Draws = 3,
    null_models: Sequence[str] | None = None,
    device: str = "auto",
    progress: Progress = no_progress,
) -> Comparison:
    """Measures every weight that two or more checkpoints of one model share, from each checkpoint to the next.

    A checkpoint is a reference, a path, an open checkpoint, a state dict, a module, or a decomposed folder. Weights are
    read, decomposed and measured one at a time; no factors are written. `k` leading directions are compared, or all if
    a weight has fewer (None: min(rank, 64)). `modules` adds groups: label -> comma-separated names or patterns.
    `include` and `exclude` are regular expressions for the tensors' keys. `null_draws` random updates of each weight
    and pair form a null model (0: none; "auto": 3, or 1 for large checkpoints). `null_models` adds to the Gaussian one
    "spectrum" (the update's singular values in random frames) and "permuted" (its entries shuffled). The columns are
    those of `rotation.metrics.Change` (angles in degrees), each with its null models (`rotation.null_model`); for three
    checkpoints also the composition of the rotations.

    >>> found = compare("org/base", "org/tuned", include="q_proj")
    >>> found.layers.sort_values("principal_energy_z")[["weight", "principal_energy"]]

    Raises ValueError, in one line, for fewer than two checkpoints, no common weight, a weight that is quantised or not
    finite, a pattern that matches nothing, and settings out of range.
    """
    chain = open_chain(*checkpoints, include=include, exclude=exclude)
    settings = Settings(k, seed, null_draws, device, tuple(null_models or ()))
    return compare_chain(chain, settings, modules=modules, progress=progress)


def compare_chain(
    chain: Chain,
    settings: Settings,
    *,
    modules: Mapping[str, str] | None = None,
    progress: Progress = no_progress,
    kept: KeptRows | None = None,
    group: Processes | None = None,
) -> Comparison:
    """`compare` for checkpoints that are already open; `kept` and `group` as in `measuring.measure_chain`."""
    settings = settings.for_chain(chain)
    groups = make_groups(chain.names, modules)
    measured = measure_chain(chain, groups, settings, progress, kept, group)
    layers = measured.layers
    metrics: dict[str, Any] = {
        "unmatched": [{"weight": name, "reason": reason} for name, reason in chain.unmatched.items()],
        "notes": note_limits(layers, chain, int(settings.null_draws)),
        "null": _null(layers, settings),
        "k": settings.k,
        "seed": settings.seed,
    }
    summarise = _summarise_three if len(chain.checkpoints) == 3 else _summarise_links
    found, modules_table, curves = summarise(layers, groups, chain)
    return Comparison(layers, typed(modules_table), typed(curves), metrics | found, tuple(groups), measured.spectra)


def _both_sides(columns: Iterable[str]) -> list[str]:
    """The measures of both sides together; the composition error is the tall side's."""
    return [c for c in columns if c.startswith("rotation_mse") or not c.endswith(("_U", "_Vh"))]


def _null(layers: pd.DataFrame, settings: Settings) -> dict[str, Any]:
    """The null model, further ones if there are any, and the measures that stand out."""
    others = list(settings.models[1:]) if settings.null_draws else []
    found = {"model": "gaussian", "draws": settings.null_draws} | ({"further_models": others} if others else {})
    return found | {"standing_out": standing_out(layers, others)}


def _summarise_three(
    layers: pd.DataFrame, groups: list[Group], chain: Chain
) -> tuple[dict[str, Any], pd.DataFrame, pd.DataFrame]:
    """The measures in metrics.json, and the tables of groups and curves."""
    summaries = _group_summaries(layers, groups)
    found = {"all": describe(layers), "groups": summaries, "identity": describe_identities(layers)}
    return found | {"sources": chain.sources}, module_table(summaries), curve_table(layers, groups)


def _summarise_links(
    layers: pd.DataFrame, groups: list[Group], chain: Chain
) -> tuple[dict[str, Any], pd.DataFrame, pd.DataFrame]:
    """The same, link by link."""
    links, modules, curves = [], [], []
    for a, b in pairwise(chain.labels):
        rows, ends = layers[(layers["from"] == a) & (layers["to"] == b)], {"from": a, "to": b}
        summaries = _group_summaries(rows, groups)
        links.append({**ends, "all": describe(rows), "groups": summaries})
        modules.append(_at(ends, module_table(summaries)))
        curves.append(_at(ends, curve_table(rows, groups)))
    checkpoints = [{"name": label} | source for label, source in chain.sources.items()]
    found = {"checkpoints": checkpoints, "links": links}
    return found, pd.concat(modules, ignore_index=True), pd.concat(curves, ignore_index=True)


def _group_summaries(layers: pd.DataFrame, groups: list[Group]) -> dict[str, dict[str, Any]]:
    return {group.label: describe(layers[layers["weight"].isin(group.members)]) for group in groups}


def _at(link: Mapping[str, str], table: pd.DataFrame) -> pd.DataFrame:
    """The table with the ends of the link after its first column."""
    first, *rest = table.columns
    return table.assign(**link)[[first, *ENDS, *rest]]


def _read_metrics(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = read_json(path)
        if not {"notes", "unmatched"} <= found.keys() or found.keys().isdisjoint({"sources", "checkpoints"}):
            raise ValueError("those of something else")
    except (OSError, ValueError, AttributeError) as e:
        raise ValueError(f"{path}: not the metrics of a comparison ({e}); compare again, or give another folder") from e
    return found


def _read_table(path: Path) -> pd.DataFrame:
    texts = dict.fromkeys(("weight", "module", *ENDS), str)
    try:
        table = pd.read_csv(path, dtype=texts, keep_default_na=False, na_values=[""], encoding="utf-8")
        if "module" not in table:
            raise ValueError("no column 'module'")
    except (OSError, ValueError) as e:
        said = f"{path}: missing or no table of a comparison ({str(e).splitlines()[0]})"
        raise ValueError(f"{said}; compare again, or give another folder") from e
    return typed(table.fillna(dict.fromkeys([column for column in texts if column in table], "")))
