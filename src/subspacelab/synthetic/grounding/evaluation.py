"""Evaluation of a checkpoint on unseen scenes, with controls."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from subspacelab.core.callbacks import Progress, no_progress
from subspacelab.core.files import write_json
from subspacelab.data.boxes import box_iou
from subspacelab.models.qwen_vl import load_qwen_vl, vision_tokens
from subspacelab.synthetic.grounding.model import GroundingModel, decode_after, encode_prompts, read_prefix
from subspacelab.synthetic.grounding.scenes import Scene, render_scenes, scene_tensors, split_seed
from subspacelab.synthetic.grounding.tokenizer import DemoTokenizer


@dataclass(frozen=True)
class Evaluation:
    """Evaluation of a checkpoint on held-out scenes."""

    mean_iou: float
    """Mean IoU of the greedy boxes."""
    mean_iou_se: float
    """Its standard error over the scenes; another training may differ by more."""
    num_scenes: int
    """Number of scenes."""
    boxes: Float[Tensor, "scenes 4"]
    """The greedy boxes, x, y, w, h in pixels."""
    ious: Float[Tensor, " scenes"]
    """One per scene."""


def evaluate(
    model: Any, tokenizer: DemoTokenizer, scenes: Sequence[Scene], *, batch_size: int = 32, draws: int | None = None
) -> Evaluation:
    """Mean IoU of the greedy boxes over scenes of one size, or of sampled boxes with `draws`, and its standard error.

    `draws` is the seed of the samples, one per scene at temperature 1, which show the policy that reinforcement learns.
    """
    (found,) = evaluate_each(model, tokenizer, scenes, [draws], batch_size=batch_size)
    return found


@torch.no_grad()
def evaluate_each(
    model: Any,
    tokenizer: DemoTokenizer,
    scenes: Sequence[Scene],
    draws: Sequence[int | None],
    *,
    batch_size: int = 32,
) -> list[Evaluation]:
    """`evaluate` for each of `draws`; the pictures are read once for all."""
    generators = [None if seed is None else torch.Generator().manual_seed(seed) for seed in draws]
    images, questions, truth = scene_tensors(scenes)
    was_training = model.training
    model.eval()
    parts: list[list[Tensor]] = [[] for _ in draws]
    for i in range(0, len(scenes), batch_size):
        batch = encode_prompts(tokenizer, images[i : i + batch_size], questions[i : i + batch_size])
        prefix = read_prefix(model, tokenizer, batch)
        for boxes, generator in zip(parts, generators, strict=True):
            answer = decode_after(
                model,
                tokenizer,
                prefix.copy(),
                size=images.shape[1],
                temperature=float(generator is not None),
                generator=generator,
            )
            boxes.append(answer.boxes)
    model.train(was_training)
    found = []
    for each in parts:
        ious = box_iou(torch.cat(each), truth)
        found.append(Evaluation(*mean_and_error(ious), len(scenes), torch.cat(each), ious))
    return found


def mean_and_error(values: Float[Tensor, " n"]) -> tuple[float, float]:
    """Mean and its standard error over these values, std / sqrt(n), which does not include the spread of trainings."""
    values = values.double()
    return float(values.mean()), float(values.std() / len(values) ** 0.5)


TRAINED_SIZE, USED_SIZE = 224, 448
RANKS = (64, 128)
SVD_SCENES = 64


@dataclass(frozen=True)
class CheckpointEvaluation:
    """Metrics of one of the study's checkpoints, and its boxes on the held-out scenes."""

    name: str
    """Name of the checkpoint."""
    metrics: dict[str, float]
    """See `evaluate_checkpoint`."""
    scenes: list[Scene]
    """The held-out scenes."""
    found: Evaluation
    """The greedy boxes on the scenes."""

    def save(self, folder: Path) -> None:
        """Writes the metrics, rounded to six decimals, to `folder/<name>.json`."""
        write_json(folder / f"{self.name}.json", {key: round(value, 6) for key, value in self.metrics.items()})


def evaluate_checkpoint(
    folder: Path, *, seed: int, num_scenes: int = 512, before: Path | None = None, progress: Progress = no_progress
) -> CheckpointEvaluation:
    """Evaluates a checkpoint folder on held-out scenes.

    Metrics: `mean_iou` of the greedy boxes, `sampled_iou` of boxes drawn at temperature 1; `constant_iou`, that of the
    best constant box (chosen on training scenes, measured on the held-out ones); with `before`, the paired `gain` and
    `sampled_gain` over that checkpoint; each with its standard error over the scenes (`_se`), which does not include
    the spread of trainings (another seed or CPU). `svd_cosine_rank64_median`, `svd_cosine_rank128_median`: cosine
    between the [256, d] merged tokens of a 448-pixel picture and their best approximation of that rank.
    """
    checkpoint = GroundingModel.load(folder)
    tokenizer, model = checkpoint.tokenizer, checkpoint.model
    held_out, training = (
        render_scenes(split_seed(seed, split), num_scenes, TRAINED_SIZE, f"render {split} scenes", progress)
        for split in ("held_out", "train")
    )
    found, sampled = evaluate_each(model, tokenizer, held_out, [None, seed])
    constant = mean_and_error(box_iou(best_constant_box(_boxes(training)), _boxes(held_out)))
    metrics: dict[str, float] = {
        "mean_iou": found.mean_iou,
        "mean_iou_se": found.mean_iou_se,
        "sampled_iou": sampled.mean_iou,
        "sampled_iou_se": sampled.mean_iou_se,
        "constant_iou": constant[0],
        "constant_iou_se": constant[1],
        "num_scenes": num_scenes,
    }
    if before is not None:
        earlier = evaluate_each(load_qwen_vl(before), tokenizer, held_out, [None, seed])
        for name, now, then in zip(("gain", "sampled_gain"), (found, sampled), earlier, strict=True):
            metrics[name], metrics[f"{name}_se"] = mean_and_error(now.ious - then.ious)
    few = min(SVD_SCENES, num_scenes)
    large = render_scenes(split_seed(seed, "held_out"), few, USED_SIZE, f"render at {USED_SIZE}", progress)
    features = _features(model, tokenizer, large)
    for rank in RANKS:
        metrics[f"svd_cosine_rank{rank}_median"] = float(truncation_cosine(features, rank).median())
    return CheckpointEvaluation(folder.name, metrics, held_out, found)


def best_constant_box(boxes: Float[Tensor, "scenes 4"], candidates: int = 4096) -> Float[Tensor, " 4"]:
    """The box x, y, w, h with the highest mean IoU to `boxes`, the best blind answer: random search, then refinement.

    Candidates are corners drawn from the boxes' own range; then 300 shrinking random steps from the best one. Seeded.
    """
    generator = torch.Generator().manual_seed(0)
    low, high = boxes.amin(0), boxes.amax(0)
    tried = low + (high - low) * torch.rand(candidates, 4, generator=generator)
    scores = torch.stack([box_iou(box, boxes).mean() for box in tried])
    best, score = tried[scores.argmax()], scores.max()
    for step in range(300):
        width = 0.2 * 0.98**step
        near = (best + width * (high - low) * torch.randn(16, 4, generator=generator)).clamp(min=0)
        near_scores = box_iou(near[:, None], boxes[None]).mean(1)
        if near_scores.max() > score:
            best, score = near[near_scores.argmax()], near_scores.max()
    return best


def truncation_cosine(features: Float[Tensor, "pictures tokens dim"], rank: int) -> Float[Tensor, " pictures"]:
    """cos(X, X_r) = ||X_r||_F / ||X||_F, where X_r is the truncated SVD, which is a projection of X (Eckart-Young)."""
    energy = torch.linalg.svdvals(features.double()).square()
    return (energy[:, :rank].sum(-1) / energy.sum(-1)).sqrt()


@torch.no_grad()
def _features(
    model: torch.nn.Module, tokenizer: DemoTokenizer, scenes: list[Scene]
) -> Float[Tensor, "pictures tokens dim"]:
    parts = []
    for i in range(0, len(scenes), 8):
        images, questions, _ = scene_tensors(scenes[i : i + 8])
        parts.append(vision_tokens(model, encode_prompts(tokenizer, images, questions)))
    return torch.cat(parts)


def _boxes(scenes: list[Scene]) -> Float[Tensor, "scenes 4"]:
    return torch.tensor([s.bbox for s in scenes], dtype=torch.float32)
