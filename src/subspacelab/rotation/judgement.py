"""Evaluation of updates as models: parts of an update, and predictions of it, by the scores of rebuilt checkpoints."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from subspacelab.checkpoints import Weights, open_checkpoint, read_tensors, write_tensors
from subspacelab.core.callbacks import Progress, no_progress
from subspacelab.core.files import partial_folder, write_csv
from subspacelab.rotation.application import Recipe, write_rebuilt
from subspacelab.rotation.pairing import Pair, open_pair

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TABLE, PICTURE = "judged.csv", "judged_updates.png"
COLUMNS = ("variant", "family", "part", "rank", "scale", "step", "is_random", "relative_norm", "distance")
SCORES = ("score", "score_se", "gain", "gain_se", "behind", "behind_se")

Score: TypeAlias = Callable[[Path], Float[Tensor, " items"]]
"""Function from a checkpoint folder to its score on each item; the items are the same for all, so differences are
paired."""


@dataclass(frozen=True)
class Earlier:
    """A checkpoint saved during the same training, before its end."""

    place: Weights
    """The checkpoint."""
    of_steps: float
    """Share of the training's steps at that time."""
    of_rates: float
    """The same share with each step weighted by its learning rate."""


@dataclass(frozen=True)
class Variant:
    """A checkpoint to evaluate: base + scale * part of the update to `tuned`."""

    family: str
    """scale, rank, part: of the update to the tuned checkpoint; snapshot, predicted, predicted_by_rate: from an earlier
    one."""
    recipe: Recipe
    """What is added to the base."""
    step: int | None = None
    """Number of steps before the earlier checkpoint was saved."""

    @property
    def label(self) -> str:
        """Label in the table: `rank 4`, `rotation random`, `predicted 30`."""
        values = {"scale": f" {self.recipe.scale:g}", "rank": f" {self.recipe.rank}", "part": ""}
        name = self.recipe.part if self.family == "part" else self.family
        return name + values.get(self.family, f" {self.step}") + (" random" if self.recipe.random is not None else "")

    @property
    def name(self) -> str:
        """Name under which its scores are stored."""
        recipe = self.recipe
        parts = (self.family, recipe.part, recipe.rank, recipe.scale, self.step, recipe.random)
        return "-".join(str(part) for part in parts)


@dataclass(frozen=True)
class Judgement:
    """The result of `judge`."""

    table: pd.DataFrame
    """One row per checkpoint; `judge` describes the columns."""

    @classmethod
    def empty(cls) -> "Judgement":
        """The result for checkpoints without a task."""
        return cls(_typed(pd.DataFrame(columns=[*COLUMNS, *SCORES])))

    def save(self, folder: Path | str) -> None:
        """Writes judged.csv."""
        write_csv(Path(folder) / TABLE, self.table)

    @classmethod
    def load(cls, folder: Path | str) -> "Judgement":
        """Reads what `save` wrote."""
        return cls(_typed(pd.read_csv(Path(folder) / TABLE)))

    def plot(self) -> "Figure":
        """Score against rank, scale and steps, with random updates of equal norm."""
        from subspacelab.rotation.judge_plots import draw_judgement

        return draw_judgement(self)


def judge(
    base: Weights,
    tuned: Weights,
    score: Score,
    work_dir: Path,
    *,
    ranks: Sequence[int],
    scales: Sequence[float],
    earlier: Mapping[int, Earlier] | None = None,
    seed: int = 42,
    progress: Progress = no_progress,
) -> Judgement:
    """Scores checkpoints that are the base plus a part of the update D = tuned - base, each as a folder of its own.

    family "scale": base + S D, S = 0 is the base and 1 the tuned checkpoint; "rank": the best approximation of D of
    rank k per weight, 0 is norms and biases alone; "part": rotation and spectrum (`UpdateParts.part`). Each has a
    control, `is_random`: Gaussian matrices with the parts' norms. "snapshot": the checkpoint after `step` steps;
    "predicted": base + (snapshot - base) / its share of the steps, the end of a training that continues in a straight
    line; "predicted_by_rate": the same with each step weighted by its learning rate. `relative_norm`: norm of the added
    update / ||D||, and `distance`: ||W - tuned|| / ||D||, Frobenius, over all matrices. `score`: mean over the items;
    `gain`: mean difference to the base, `behind`: score of the tuned checkpoint less this one's; `_se`: their standard
    errors, paired. A killed run continues from `work_dir`.
    """
    pair = open_pair(base, tuned, keep=True)
    variants = [*plan_variants(ranks, scales, seed), *plan_predictions(earlier or {})]
    pairs: dict[int | None, Pair] = {None: pair}
    pairs |= {step: open_pair(base, saved.place, keep=True) for step, saved in (earlier or {}).items()}
    device = torch.device("cpu")
    rows: list[dict[str, Any]] = []
    scores: list[Tensor] = []
    with progress("judge", len(variants), "models") as advance:
        for variant in variants:
            kept = work_dir / f"{variant.name}.safetensors"
            if not kept.is_file():
                write_tensors(kept, _judge_one(pairs[variant.step], pair, variant, score, work_dir, device))
            found, _ = read_tensors(kept)
            recipe = variant.recipe
            row: dict[str, Any] = {"variant": variant.label, "family": variant.family}
            row |= {"part": recipe.part, "rank": recipe.rank, "scale": recipe.scale, "step": variant.step}
            row |= {"is_random": recipe.random is not None}
            rows.append(row | {name: found[name].item() for name in ("relative_norm", "distance")})
            scores.append(found["scores"].double())
            advance(1)
    before, after = scores[0], scores[1]
    for row, values in zip(rows, scores, strict=True):
        for name, compared in (("score", values), ("gain", values - before), ("behind", after - values)):
            row |= {name: compared.mean().item(), f"{name}_se": compared.std().item() / math.sqrt(len(compared))}
    return Judgement(_typed(pd.DataFrame(rows, columns=[*COLUMNS, *SCORES])))


def plan_variants(ranks: Sequence[int], scales: Sequence[float], seed: int) -> list[Variant]:
    """Base and tuned checkpoint, and every part with its control."""
    parts = [
        Variant("scale", Recipe()),
        *(Variant("scale", Recipe(scale=scale)) for scale in scales),
        *(Variant("rank", Recipe(rank=rank)) for rank in ranks),
        *(Variant("part", Recipe(part=part)) for part in ("rotation", "spectrum")),
    ]
    controls = [Variant(v.family, Recipe(v.recipe.part, v.recipe.rank, v.recipe.scale, random=seed)) for v in parts]
    pairs = [variant for both in zip(parts, controls, strict=True) for variant in both]
    return [Variant("scale", Recipe(scale=0.0)), pairs[0], Variant("rank", Recipe(rank=0)), *pairs[1:]]


def plan_predictions(earlier: Mapping[int, Earlier]) -> list[Variant]:
    """Each earlier checkpoint, and its straight-line predictions of the end of the training."""
    return [
        Variant(family, Recipe(scale=scale), step)
        for step, saved in sorted(earlier.items())
        for family, scale in (
            ("snapshot", 1.0),
            ("predicted", 1 / saved.of_steps),
            ("predicted_by_rate", 1 / saved.of_rates),
        )
    ]


def _judge_one(
    pair: Pair, whole: Pair, variant: Variant, score: Score, work_dir: Path, device: torch.device
) -> dict[str, Tensor]:
    """`scores` [items], and the sizes relative to the whole update."""
    with partial_folder(work_dir / "model") as scratch:
        folder = scratch / "model"
        write_rebuilt(pair, variant.recipe, folder, device)
        added, missing, total = (math.sqrt(s) for s in _squares(folder, whole, device))
        scores = score(folder)
    sizes = {"relative_norm": added / (total or 1), "distance": missing / (total or 1)}
    return {"scores": scores} | {name: torch.tensor(size, dtype=torch.float64) for name, size in sizes.items()}


def _squares(folder: Path, whole: Pair, device: torch.device) -> tuple[float, float, float]:
    """||W - base||^2, ||tuned - W||^2 and ||tuned - base||^2 over the matrices."""
    rebuilt = open_checkpoint(folder)
    sums = [0.0, 0.0, 0.0]
    for key, parts in whole.matrices.items():
        tensor = rebuilt.read(key).reshape(len(parts), *parts[0].shape)
        for w, update in zip(tensor, whole.updates(key, device), strict=True):
            for i, d in enumerate((w.double() - update.before, update.after - w.double(), update.whole)):
                sums[i] += d.double().square().sum().item()
    return sums[0], sums[1], sums[2]


def _typed(table: pd.DataFrame) -> pd.DataFrame:
    kinds: dict[str, Any] = {"rank": "Int64", "step": "Int64", "is_random": bool}
    return table.astype(kinds | dict.fromkeys(("scale", "relative_norm", "distance", *SCORES), float))
