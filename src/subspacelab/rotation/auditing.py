"""A LoRA adapter against its base: size and position of its updates, compared with random ones."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from subspacelab.checkpoints import (
    Adapter,
    Checkpoint,
    Weights,
    matrix_shape,
    open_adapter,
    open_checkpoint,
    read_tensors,
    source_of,
    write_tensors,
)
from subspacelab.checkpoints.tensors import canonical_keys
from subspacelab.core.callbacks import Progress, no_progress
from subspacelab.core.devices import choose_device, float64_place
from subspacelab.core.errors import CheckpointError, SettingError
from subspacelab.core.files import read_json, write_csv, write_json
from subspacelab.data.text import read_texts
from subspacelab.models.causal_lm import load_causal_lm
from subspacelab.models.text_windows import text_windows
from subspacelab.models.update_on_inputs import OnInputs, measure_on_inputs
from subspacelab.rotation.adapted import (
    AFFORDABLE,
    ENERGIES,
    INPUTS,
    TURNS,
    AdaptedWeight,
    audit_gflop,
    columns_on_inputs,
    measure_adapted,
)
from subspacelab.rotation.groups import layer_index, make_groups
from subspacelab.rotation.measuring import say_cost
from subspacelab.rotation.metrics import Value
from subspacelab.rotation.null_model import Null, stands_out
from subspacelab.rotation.pairing import find_weight

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LAYERS, METRICS, SPECTRA = FILES = ("layers.csv", "metrics.json", "spectra.safetensors")
"""Files that `Audit.save` writes."""
TEXTS = ("weight", "module")
MEANS = ("relative_norm", "stable_rank", "effective_rank", *ENERGIES, *TURNS, *INPUTS, "magnitude_change")
"""The columns whose means over the weights are in metrics.json."""


@dataclass(frozen=True)
class Audit:
    """The result of `audit`.

    >>> found = audit("org/some-lora", base="org/base")
    >>> found.summary
    >>> found.layers.sort_values("leading_energy_z")[["weight", "relative_norm", "leading_energy"]]
    """

    layers: pd.DataFrame
    """One row per adapted weight; `audit` describes the columns."""
    metrics: dict[str, Any]
    """Adapter, base, settings, notes, means over the weights."""
    spectra: Mapping[str, Float[Tensor, " r"]] = field(repr=False)
    """Weight -> singular values of its update, scaling included, float64."""

    @property
    def notes(self) -> list[str]:
        """Notes for the reader of the numbers."""
        return list(self.metrics["notes"])

    @property
    def summary(self) -> str:
        """One sentence: size and position of the updates, and how they differ from random ones."""
        return str(self.metrics["summary"])

    def save(self, folder: Path | str) -> None:
        """Writes layers.csv, metrics.json and spectra.safetensors; replaces those of an earlier audit.

        ValueError for other files of these names.
        """
        folder = Path(folder)
        for name, read in {LAYERS: _read_layers, METRICS: _read_metrics}.items():
            if os.path.lexists(folder / name):
                read(folder / name)
        write_csv(folder / LAYERS, self.layers)
        write_tensors(folder / SPECTRA, self.spectra)
        write_json(folder / METRICS, self.metrics)

    @classmethod
    def load(cls, folder: Path | str) -> "Audit":
        """Reads what `save` wrote; ValueError, naming the file, if one is missing or damaged."""
        folder = Path(folder)
        spectra, _ = read_tensors(folder / SPECTRA)
        return cls(_read_layers(folder / LAYERS), _read_metrics(folder / METRICS), spectra)

    def plot(self, kind: str = "updates") -> "Figure":
        """A figure: "updates" (size and energies over the modules) or "spectra"; SettingError for other kinds."""
        from subspacelab.rotation.audit_plots import draw_audit

        return draw_audit(self, kind)


def audit(
    adapter: str | Path,
    base: Weights | None = None,
    k: int | None = None,
    seed: int = 42,
    null_draws: int = 3,
    calib_dataset: str | None = None,
    calib_loader_size: int = 16,
    seq_len: int = 512,
    device: str = "auto",
    progress: Progress = no_progress,
) -> Audit:
    """Measures the update of every weight that a PEFT LoRA adapter changes, against `base` or the base that it names.

    The update is D = scaling B A, with its exact spectrum from the QR of its factors. Columns per weight W [m, n]:
    `rank` and `scaling` of the factors; `norm` ||D||_F, `relative_norm` ||D||_F / ||W||_F; `stable_rank` ||D||_F^2 /
    ||D||_2^2, `effective_rank` (Roy & Vetterli 2007); `leading_energy`, `trailing_energy`: share of ||D||_F^2 in the
    frame of the k leading (trailing) singular directions of W, over that of a random update, which is 1; `angle_mean`:
    mean principal angle (degrees) by which W + D rotates the leading k directions; `intruders`: how many of the 10
    leading directions of W + D are near none of W (2410.21228). The random updates have the singular values of D in
    uniform frames: for energies their deviation is exact (`linalg.updates.random_frames_deviation`), for angles and
    intruders it comes from `null_draws` draws.

    With `calib_dataset`, for a causal language model, which is then loaded: `input_ratio`, ||D X||_F / ||W X||_F over
    the tokens X of `calib_loader_size` windows of `seq_len`, and `input_ratio_random`, that of a Gaussian update of
    equal norm, exact. `magnitude_change`: root mean square of DoRA's factor of each output, less 1; D is the update
    before that factor.

    >>> audit("org/some-lora", base="org/base").layers[["weight", "relative_norm", "leading_energy"]]

    Raises ValueError, in one line, if there is no LoRA adapter, if the base is missing or not the adapter's own, if
    weights are quantised or not finite, or if settings are out of range.
    """
    if k is not None and k < 1:
        raise SettingError(f"k={k}: at least 1 leading direction")
    if null_draws < 0:
        raise SettingError(f"null_draws={null_draws}: 0 or more")
    place = float64_place(choose_device(device))
    if not isinstance(adapter, str | Path):
        raise SettingError(f"adapter: a {type(adapter).__name__}; give the folder or repository that holds it")
    opened = open_adapter(adapter)
    weights = _open_base(opened, base)
    keys, absent = _match(opened, weights)
    turned = opened.transposed({module: matrix_shape(weights.info(key).shape) for module, key in keys.items()})
    adapted = [AdaptedWeight(opened, opened.layers[m], weights, key, turned[m]) for m, key in keys.items()]
    costs = [audit_gflop(weight.shape, null_draws) for weight in adapted]
    if progress is not no_progress:
        say_cost(sum(costs), sum(costs) - sum(audit_gflop(weight.shape, 0) for weight in adapted))
    inputs = (
        None if calib_dataset is None else _on_inputs(adapted, calib_dataset, calib_loader_size, seq_len, seed, device)
    )
    labels = {name: group.label for group in make_groups([w.name for w in adapted]) for name in group.members}
    rows: list[dict[str, Value]] = []
    spectra: dict[str, Tensor] = {}
    with progress("audit", sum(costs), "GFLOP") as advance:
        for weight, cost in zip(adapted, costs, strict=True):
            name = weight.name
            found, spectra[name] = measure_adapted(weight, k=k, seed=seed, null_draws=null_draws, device=place)
            if inputs is not None:
                found |= columns_on_inputs(found, weight.shape[0 if weight.transposed else 1], inputs.get(name))
            rows.append({"weight": name, "module": labels[name], "layer": layer_index(name), **found})
            advance(cost)
    layers = _typed(pd.DataFrame(rows))
    source = weights.source
    metrics = {
        "adapter": {"reference": _reference(str(adapter)), "revision": opened.revision},
        "base": {"reference": _reference(source.reference), "revision": source.revision},
        "k": k,
        "seed": seed,
        "null_draws": null_draws,
        "calibration": calib_dataset
        and {"text": _reference(calib_dataset), "windows": calib_loader_size, "length": seq_len},
        "notes": [*_notes(opened, layers, absent), *_doubtful(adapted)],
        "means": {c: float(layers[c].mean()) for c in MEANS if c in layers and layers[c].notna().any()},
        "standing_out": _standing_out(layers),
    }
    return Audit(layers, metrics | {"summary": _summary(metrics, layers)}, spectra)


def _on_inputs(
    adapted: Sequence[AdaptedWeight], calib_dataset: str, num_windows: int, seq_len: int, seed: int, device: str
) -> dict[str, OnInputs]:
    """The effect of each update on the base's own inputs; embeddings, whose inputs are not vectors, are left out."""
    folder = source_of(adapted[0].base).folder
    windows = text_windows(folder, read_texts(calib_dataset), num_windows, seq_len, seed)
    model = load_causal_lm(folder, device=choose_device(device))
    factors = {}
    for weight in adapted:
        if not weight.layer.is_embedding:
            left, right = weight.adapter.factors(weight.layer, False)
            factors[weight.name] = (left, right)
    return measure_on_inputs(model, factors, windows)


def _reference(reference: str) -> str:
    """The reference; for an absolute path, which belongs to one machine, only its name."""
    return Path(reference).name if Path(reference).is_absolute() else reference


def _open_base(adapter: Adapter, base: Weights | None) -> Checkpoint:
    if base is not None:
        return open_checkpoint(base)
    named, revision = adapter.config.base_model_name_or_path, adapter.config.revision
    if not named:
        raise CheckpointError(f"{adapter.reference}: names no base; give one as `base`")
    local = Path(named).exists() or revision is None
    try:
        return open_checkpoint(named if local else f"{named}@{revision}")
    except ValueError as e:
        raise CheckpointError(f"{adapter.reference}: its base cannot be opened ({e}); give one as `base`") from e


def _match(adapter: Adapter, base: Checkpoint) -> tuple[dict[str, str], list[str]]:
    """Module -> key of its weight in the base, and the modules without one."""
    keys = canonical_keys(name for name in base.names if name.endswith(".weight"))
    found: dict[str, str] = {}
    absent = []
    for module in adapter.layers:
        key = find_weight(keys, module)
        if key is None:
            absent.append(module)
        else:
            found[module] = key
    if not found:
        raise CheckpointError(
            f"{adapter.reference}: adapts {absent[0]!r}, which {base.source.reference} does not have; "
            "give the base that it was trained on"
        )
    return found, absent


def _typed(layers: pd.DataFrame) -> pd.DataFrame:
    kinds: dict[str, Any] = dict.fromkeys(
        [c for c in layers.columns if c not in (*TEXTS, "m", "n", "rank", "k")], float
    )
    return layers.astype(kinds | {"layer": "Int64"})


def _standing_out(layers: pd.DataFrame) -> list[dict[str, Any]]:
    """Measures of single weights that differ from a random update's by the rule of `null_model.stands_out`."""
    found = []
    for row in layers.to_dict("records"):
        for column in (*ENERGIES, *TURNS):
            mean, std = row.get(f"{column}_null_mean"), row.get(f"{column}_null_std")
            if pd.notna(row[column]) and pd.notna(mean) and pd.notna(std):
                null = Null(float(mean), float(std))
                if stands_out(column, row[column], null):
                    entry = {"weight": row["weight"], "measure": column, "value": row[column]}
                    found.append(entry | {"null_mean": null.mean, "z": null.z(row[column])})
    return found


def _notes(adapter: Adapter, layers: pd.DataFrame, absent: list[str]) -> list[str]:
    notes = []
    if adapter.config.use_dora:
        notes.append(
            "DoRA: the columns are of D = scaling B A, before each output is scaled by its magnitude; how far that is "
            "from 1 says magnitude_change (of embeddings it is not measured)"
        )
    if absent:
        notes.append(f"{len(absent)} adapted modules are not in the base and left out, such as {absent[0]}")
    if adapter.others:
        notes.append(
            f"{len(adapter.others)} tensors of the adapter are no factors (modules saved whole, biases) and left out, "
            f"such as {adapter.others[0]}"
        )
    if (whole := int((layers["k"] * 2 > layers[["m", "n"]].min(axis=1)).sum())) > 0:
        notes.append(f"in {whole} weights k is more than half of the directions: trailing_energy is empty; lower k")
    if (costly := int(layers["angle_mean"].isna().sum())) > 0:
        notes.append(f"{costly} weights cost over {AFFORDABLE:,.0f} GFLOP each: angle_mean and intruders are empty")
    return notes


def _doubtful(adapted: Sequence[AdaptedWeight]) -> list[str]:
    """Square weights whose layout cannot be determined, because the other weights have both layouts."""
    plain = [weight for weight in adapted if not weight.layer.is_embedding]
    square = [weight for weight in plain if weight.shape[0] == weight.shape[1]]
    kinds = {weight.transposed for weight in plain if weight.shape[0] != weight.shape[1]}
    if not square or len(kinds) < 2:
        return []
    return [f"{len(square)} square weights are taken as stored [out, in], while others are stored [in, out]"]


def _summary(metrics: Mapping[str, Any], layers: pd.DataFrame) -> str:
    largest = layers.iloc[int(layers["relative_norm"].fillna(0).argmax())]
    parts = layers.assign(square=layers["norm"] ** 2).groupby("module")["square"].sum()
    ranks = sorted(set(layers["rank"]))
    outstanding = sum(entry["measure"] == "leading_energy" for entry in metrics["standing_out"])
    rank = f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    return (
        f"{metrics['adapter']['reference']}: {len(layers)} weights of rank {rank}; ||D|| / ||W|| is "
        f"{layers['relative_norm'].median():.2g} in the median, {largest['relative_norm']:.2g} in {largest['weight']}; "
        f"{parts.max() / (parts.sum() or 1):.0%} of the squared norm is in {parts.idxmax()}; stable rank "
        f"{layers['stable_rank'].median():.3g}; energy in the base's leading directions is "
        f"{layers['leading_energy'].median():.3g} times that of random updates of the same singular values, from which "
        f"{outstanding} of {len(layers)} weights stand out{_said_of_inputs(layers)}"
    )


def _said_of_inputs(layers: pd.DataFrame) -> str:
    if "input_ratio" not in layers or layers["input_ratio"].isna().all():
        return ""
    real, random = (layers[column].median() for column in INPUTS)
    return f"; on the text's inputs ||D X|| / ||W X|| is {real:.2g} in the median, {random:.2g} for random updates"


def _read_layers(path: Path) -> pd.DataFrame:
    try:
        found = pd.read_csv(path, dtype=dict.fromkeys(TEXTS, str), keep_default_na=False, na_values=[""])
        if "leading_energy" not in found:
            raise ValueError("no column 'leading_energy'")
    except (OSError, ValueError) as e:
        said = f"{path}: missing or no table of an audit ({str(e).splitlines()[0]})"
        raise ValueError(f"{said}; audit again, or give another folder") from e
    return _typed(found)


def _read_metrics(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = read_json(path)
        if not {"summary", "notes"} <= found.keys():
            raise ValueError("those of something else")
    except (OSError, ValueError, AttributeError) as e:
        raise ValueError(f"{path}: not the metrics of an audit ({e}); audit again, or give another folder") from e
    return found
