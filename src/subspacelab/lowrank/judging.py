"""Approximated tokens judged by the task: does the language model that reads them still find the box?"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from subspacelab.data.boxes import box_iou
from subspacelab.data.grounding import read_grounding
from subspacelab.data.pictures import Picture
from subspacelab.data.references import resolve_pictures
from subspacelab.lowrank.features import Features
from subspacelab.lowrank.kept_pictures import read_picture
from subspacelab.lowrank.preparation import Normalisation

if TYPE_CHECKING:
    from subspacelab.models.box_reader import BoxReader


@dataclass(frozen=True)
class Judge:
    """A checkpoint, and what it is asked about some pictures of a cache."""

    reader: "BoxReader"
    """Tokens and questions in, boxes out."""
    questions: dict[int, str]
    """Row of a picture to what is asked about it."""
    boxes: dict[int, tuple[float, ...]]
    """Row of a picture to the true box: x, y, width, height in pixels of its square."""
    size: int
    """Pixels per side of the squares."""
    normalisation: Normalisation
    """Of the tokens that `ious` is given."""

    def ious(self, rows: Sequence[int], tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, " batch"]:
        """IoU of the greedy box with the true one, when the language model reads these tokens of the pictures."""
        raw = self.normalisation.undo(tokens).float()
        found = self.reader.read(raw, [self.questions[row] for row in rows], self.size)
        return box_iou(found.double(), torch.tensor([self.boxes[row] for row in rows], dtype=torch.float64))


def open_judge(
    features: Features,
    rows: Sequence[int],
    normalisation: Normalisation,
    checkpoint: Path | str,
    images: Path | str | None,
    trained_size: int | None,
    device: torch.device,
) -> Judge:
    """The judge of some pictures; `images` is the parquet data set that they were cached from, which has the questions.

    `trained_size`: see `load_box_reader`.

    ValueError, in one line, for a normalisation that cannot be undone, a checkpoint that reads tokens of another width
    or is no Qwen2.5-VL, and a data set without one of the pictures.
    """
    from subspacelab.models.box_reader import load_box_reader  # transformers, which trainings do not need

    if normalisation.kind == "layernorm":
        raise ValueError(
            "judge: the language model reads raw tokens, and layernorm cannot be undone; train with normalisation rms"
        )
    if images is None:
        raise ValueError("judge: the questions are in the data set that was cached; give it as images (--images)")
    questions = read_questions(features, rows, resolve_pictures(str(images)))
    reader = load_box_reader(checkpoint, device, trained_size)
    if reader.dim != features.meta.dim:
        raise ValueError(
            f"{checkpoint}: reads tokens of width {reader.dim}, {features.folder} holds {features.meta.dim}; "
            "give the checkpoint that made them"
        )
    boxes = {row: box for row in rows if (box := read_picture(features, row).bbox) is not None}
    if missing := sorted(set(rows) - boxes.keys()):
        raise ValueError(
            f"{features.folder}: picture {features.index['dataset_id'][missing[0]]} has no box to be found"
        )
    return Judge(reader, questions, boxes, features.meta.image_size, normalisation)


def read_questions(features: Features, rows: Sequence[int], images: Path) -> dict[int, str]:
    """Row of each picture to its question in a parquet data set, found by name and digest of the picture.

    Of rows that have both in common the first belongs to the first. ValueError names a picture that is not there.
    """
    waiting: dict[tuple[str, str], list[int]] = defaultdict(list)
    for row, key in enumerate(zip(features.index["dataset_id"], features.index["sha256"], strict=True)):
        waiting[key].insert(0, row)
    found: dict[int, str] = {}
    for asked in read_grounding(images):
        key = asked.dataset_id, Picture(asked.dataset_id, asked.image_bytes).digest
        if waiting.get(key):
            found[waiting[key].pop()] = asked.question
    missing = next((row for row in rows if row not in found), None)
    if missing is not None:
        name = features.index["dataset_id"][missing]
        raise ValueError(f"{images}: has no picture {name} as it is in {features.folder}; give the set that was cached")
    return {row: found[row] for row in rows}
