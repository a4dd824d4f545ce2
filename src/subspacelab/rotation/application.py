"""A checkpoint plus a part of its training update, as an ordinary folder that can be evaluated as a model."""

import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import torch
from torch import Tensor

from subspacelab.checkpoints import Weights, checkpoint_writer
from subspacelab.core.callbacks import Progress, no_progress
from subspacelab.core.devices import choose_device, float64_place
from subspacelab.core.errors import CheckpointError, SettingError
from subspacelab.core.files import write_json
from subspacelab.linalg.update_parts import UpdatePart, UpdateParts, add_scaled
from subspacelab.rotation.metrics import generator_for
from subspacelab.rotation.pairing import Pair, open_pair
from subspacelab.rotation.plan import gflop
from subspacelab.rotation.random_updates import gaussian_update

RECORD = "update_part.json"
"""File in the folder that says what was added to what."""
SIDE_FILES = (
    *("generation_config.json", "preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model"),
    *("chat_template.jinja", "chat_template.json"),
)
"""Files copied from the tuned checkpoint, in addition to config.json."""
COSTS = {"leading": 1, "trailing": 1, "rotation": 2, "spectrum": 2}
"""Part -> number of decompositions per weight."""


@dataclass(frozen=True)
class Recipe:
    """Which part of an update is added, and its factor."""

    part: UpdatePart = "leading"
    """leading, trailing, rotation or spectrum (`UpdateParts.part`)."""
    rank: int | None = None
    """Number of leading terms, for leading and trailing; None: all."""
    scale: float = 1.0
    """Factor of the part; above 1 extrapolates."""
    random: int | None = None
    """Seed of Gaussian matrices with the norms of the parts, used in their place; None: the parts themselves."""

    def __post_init__(self) -> None:
        if self.part not in get_args(UpdatePart):
            raise SettingError(f"part={self.part!r}: allowed are {', '.join(get_args(UpdatePart))}")
        if self.rank is not None and self.part not in ("leading", "trailing"):
            raise SettingError(f"rank={self.rank}: of part {self.part!r} all directions are taken; leave rank out")
        if self.rank is None and self.part == "trailing":
            raise SettingError("part='trailing' is what a rank leaves; give rank")
        if self.rank is not None and self.rank < 0:
            raise SettingError(f"rank={self.rank}: 0 or more")
        if not abs(self.scale) < float("inf"):
            raise SettingError(f"scale={self.scale}: a finite number")

    def is_whole(self, shape: tuple[int, int]) -> bool:
        """Whether the result is the tuned weight itself."""
        whole = self.part == "leading" and (self.rank is None or self.rank >= min(shape))
        return whole and self.scale == 1 and self.random is None


@dataclass(frozen=True)
class Rebuilt:
    """A tensor of the resulting checkpoint."""

    key: str
    """Its key in the tuned checkpoint."""
    tensor: Tensor
    """Its entries, in the dtype of the tuned checkpoint."""
    rows: list[dict[str, Any]]
    """A row for each of its matrices, as in `Applied.layers`."""


@dataclass(frozen=True)
class Applied:
    """The result of `apply`."""

    folder: Path
    """An ordinary Hugging Face folder."""
    layers: pd.DataFrame
    """One row per matrix: weight, m, n, `update_norm` ||D||_F, `part_norm` ||P||_F before scaling, `relative_norm`
    ||P||_F / ||D||_F, whose square is the share of energy of a leading or trailing part."""
    notes: list[str]
    """Notes for the reader of the folder."""


def rebuild(pair: Pair, recipe: Recipe, device: torch.device) -> Iterator[Rebuilt]:
    """Every tensor of the tuned checkpoint as base + scale * part, one after another.

    Scalars, norms and biases have no parts: they are base + scale * their whole update, also with `random`, so that a
    result and its control differ only in matrices. Tensors that the base lacks are taken from the tuned checkpoint.
    """
    for key in pair.tuned.names_in_file_order():
        rows: list[dict[str, Any]] = []
        if key in pair.matrices:
            tensor, rows = _rebuild_matrices(pair, key, recipe, device)
        elif key in pair.partners and pair.is_floating(key):
            before, after = pair.read(key)
            tensor = after
            if recipe.scale != 1:
                tensor = add_scaled(before, after.double() - before.double(), recipe.scale, after.dtype)
        else:
            tensor = pair.tuned.read(key)
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"{key}: scale={recipe.scale:g} leads beyond the numbers of {tensor.dtype}; take a smaller one"
            )
        yield Rebuilt(key, tensor, rows)


def _rebuild_matrices(
    pair: Pair, key: str, recipe: Recipe, device: torch.device
) -> tuple[Tensor, list[dict[str, Any]]]:
    rows, matrices = [], []
    info = pair.tuned.info(key)
    for part, update in zip(pair.matrices[key], pair.updates(key, device), strict=True):
        found = update.part(recipe.part, recipe.rank)
        norm, size = (torch.linalg.vector_norm(t, dtype=torch.float64).item() for t in (update.whole, found))
        rows.append({"weight": part.weight, "m": part.shape[0], "n": part.shape[1], "update_norm": norm})
        rows[-1] |= {"part_norm": size, "relative_norm": size / norm if norm > 0 else None}
        matrices.append(_result(update, found, size, recipe, f"{part.weight}"))
    return torch.stack(matrices).reshape(info.shape).cpu(), rows


def _result(update: UpdateParts, part: Tensor, size: float, recipe: Recipe, name: str) -> Tensor:
    shape = (update.before.shape[0], update.before.shape[1])
    if recipe.is_whole(shape) or (size == 0 and not update.whole.any()):
        return update.after
    if recipe.random is not None:
        part = gaussian_update(shape, size, generator_for(recipe.random, name, "apply")).to(part.device)
    return add_scaled(update.before, part, recipe.scale, update.after.dtype)


def apply(
    base: Weights,
    tuned: Weights,
    output_dir: Path | str,
    rank: int | None = None,
    part: UpdatePart = "leading",
    scale: float = 1.0,
    random: int | None = None,
    device: str = "auto",
    progress: Progress = no_progress,
) -> Applied:
    """Writes base + scale * a part of the update D = tuned - base, weight by weight, as a Hugging Face folder.

    Parts of a weight (`linalg.update_parts`): "leading", the best approximation of D of `rank`; "trailing", the rest;
    "rotation", the tuned directions with the base's singular values; "spectrum", the base's directions with the tuned
    singular values. `scale` above 1 extrapolates, below 1 interpolates. `random`, a seed, is the control: a Gaussian
    matrix with each part's Frobenius norm in its place. Norms and biases are base + scale * D. Config, tokenizer,
    dtypes and names of the weights are those of the tuned checkpoint.

    >>> apply("org/base", "org/tuned", "models/rank-16", rank=16).layers[["weight", "relative_norm"]]

    Raises ValueError, in one line, for settings out of range, checkpoints of two models, weights that are quantised or
    not finite, and a folder that is not empty.
    """
    recipe = Recipe(part, rank, scale, random)
    place = float64_place(choose_device(device))
    pair = open_pair(base, tuned)
    layers = write_rebuilt(pair, recipe, Path(output_dir), place, progress)
    return Applied(Path(output_dir), layers, _notes(pair))


def write_rebuilt(
    pair: Pair, recipe: Recipe, folder: Path, device: torch.device, progress: Progress = no_progress
) -> pd.DataFrame:
    """Writes the tensors of `rebuild` as a Hugging Face folder, whole or not at all; returns `Applied.layers`."""
    costs = {key: COSTS[recipe.part] * sum(gflop(p.shape) for p in parts) for key, parts in pair.matrices.items()}
    rows: list[dict[str, Any]] = []
    with (
        checkpoint_writer(folder, pair.tuned.config) as writer,
        progress("apply", sum(costs.values()), "GFLOP") as advance,
    ):
        for rebuilt in rebuild(pair, recipe, device):
            writer.add(rebuilt.key, rebuilt.tensor)
            rows += rebuilt.rows
            advance(costs.get(rebuilt.key, 0))
        for name in SIDE_FILES:
            if (file := pair.tuned.find_file(name)) is not None:
                shutil.copyfile(file, writer.folder / name)
        layers = pd.DataFrame(rows).astype({"relative_norm": float})
        write_json(writer.folder / RECORD, {**pair.sources, **asdict(recipe), "update": total_sizes(layers)})
    return layers


def total_sizes(layers: pd.DataFrame) -> dict[str, float]:
    """Frobenius norms of update and part over all matrices together, before scaling."""
    whole, part = (float(layers[column].pow(2).sum() ** 0.5) for column in ("update_norm", "part_norm"))
    return {"norm": whole, "part_norm": part, "relative_norm": part / whole if whole > 0 else 0.0}


def _notes(pair: Pair) -> list[str]:
    notes = []
    if pair.unmatched:
        name, reason = next(iter(pair.unmatched.items()))
        notes.append(f"{len(pair.unmatched)} tensors are the tuned checkpoint's as they are, such as {name}: {reason}")
    vectors = [key for key in pair.partners if key not in pair.matrices and pair.is_floating(key)]
    if vectors:
        notes.append(f"{len(vectors)} norms, biases and other vectors have no parts: base + scale * their whole update")
    return notes
