"""The base checkpoint: supervised training on rendered scenes, with loss terms that keep the vision tokens varied."""

from dataclasses import field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from subspacelab.core.callbacks import Log, Progress, no_log, no_progress
from subspacelab.core.settings import Count, NotNegative, settings
from subspacelab.data.boxes import NUM_BINS, box_bins
from subspacelab.data.pictures import FRAMES, MERGE, PATCH
from subspacelab.models.qwen_vl import QwenVLSizes, prompt_embeddings, vision_tokens
from subspacelab.synthetic.grounding.evaluation import evaluate
from subspacelab.synthetic.grounding.model import (
    GroundingModel,
    GroundingTraining,
    build_model,
    encode_prompts,
)
from subspacelab.synthetic.grounding.scenes import COLOURS, ScenePool, render_scenes, scene_pool, split_seed
from subspacelab.synthetic.grounding.tokenizer import DemoTokenizer, build_tokenizer
from subspacelab.training.fit import fit
from subspacelab.training.muon import muon_adamw


class TokenHead(nn.Module):
    """Linear readout of a merged token's own pixels and of each colour's word map; discarded after training."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.pixels = nn.Linear(dim, MERGE * MERGE * 3 * PATCH * PATCH)
        self.maps = nn.Linear(dim, len(COLOURS))


def pixel_targets(pixel_values: Float[Tensor, "patches 1176"]) -> Float[Tensor, "tokens 2352"]:
    """The 28x28 pixels under each merged token: its four patches (consecutive rows), one of the two equal frames."""
    one = pixel_values.view(-1, 3, FRAMES, PATCH * PATCH)[:, :, 0]
    return one.reshape(-1, MERGE * MERGE * 3 * PATCH * PATCH)


def box_coverage(boxes: Float[Tensor, "batch 4"], size: int, side: int) -> Float[Tensor, "batch tokens"]:
    """Share of each of the side x side cells that is inside the box x, y, w, h, in raster order."""
    cell = size / side
    low = torch.arange(side) * cell
    overlap = [
        (torch.minimum(boxes[:, i, None] + boxes[:, i + 2, None], low + cell) - torch.maximum(boxes[:, i, None], low))
        .clamp(min=0)
        .div(cell)
        for i in (0, 1)
    ]
    return (overlap[1][:, :, None] * overlap[0][:, None, :]).flatten(1)


def variance_covariance(
    tokens: Float[Tensor, "tokens dim"], deviation: float = 1.0
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """VICReg's terms over a batch of tokens (arXiv 2105.04906).

    mean_j max(0, deviation - std_j), and sum_{i != j} R_ij^2 / dim with R the correlation matrix: standardised, so that
    small tokens do not look decorrelated.
    """
    centred = tokens - tokens.mean(0)
    std = (centred.var(0) + 1e-4).sqrt()
    standard = centred / std
    correlation = standard.T @ standard / (len(tokens) - 1)
    off_diagonal = correlation.square().sum() - correlation.diagonal().square().sum()
    return F.relu(deviation - std).mean(), off_diagonal / tokens.shape[1]


def soft_bins(bins: Int[Tensor, "*batch"], num_bins: int, width: float) -> Float[Tensor, "*batch num_bins"]:
    """Target distributions exp(-(i - bin)^2 / (2 width^2)), normalised; width 0 gives one-hot."""
    if width == 0.0:
        return F.one_hot(bins, num_bins).float()
    distance = torch.arange(num_bins) - bins[..., None]
    return (-(distance**2) / (2 * width**2)).softmax(-1)


@settings
class BaseTraining(GroundingTraining):
    """Settings of the base checkpoint's training."""

    steps: Count = 500
    """Optimizer steps."""
    snapshot_every: Count = 50
    """Steps between snapshots."""
    batch_size: Count = 8
    """Pictures per step."""
    pool: Count = 2048
    """Number of scenes rendered before training; each pass uses them in a new random order."""
    bin_width: NotNegative = 0.5
    """Standard deviation, in bins, of the soft location targets; 0 for one-hot."""
    map_weight: NotNegative = 1.0
    """Loss weight of the map of the asked word."""
    pixel_weight: NotNegative = 4.0
    """Loss weight of the linear decoding of pixels."""
    variance_weight: NotNegative = 2.0
    """Loss weight of VICReg's variance term."""
    covariance_weight: NotNegative = 0.1
    """Loss weight of VICReg's covariance term."""
    initializer_range: NotNegative = 0.02
    """Standard deviation of the initial weights."""
    sizes: QwenVLSizes = field(default_factory=QwenVLSizes)
    """The model's sizes."""

    def __post_init__(self) -> None:
        if self.pool < self.batch_size:
            raise ValueError(f"pool must be at least batch_size, {self.batch_size}, got {self.pool}")


def train_base(
    work_dir: Path, *, training: BaseTraining, seed: int, log: Log = no_log, progress: Progress = no_progress
) -> GroundingModel:
    """Trains from scratch; a killed run continues from `work_dir` to the same bytes. `log` receives the curves."""
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, seed=seed, sizes=training.sizes, initializer_range=training.initializer_range)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        head = TokenHead(training.sizes.hidden)
    learner = nn.ModuleDict({"model": model.train(), "head": head})
    pool = scene_pool(
        render_scenes(split_seed(seed, "train"), training.pool, training.size, "render training scenes", progress)
    )
    held_out = render_scenes(
        split_seed(seed, "held_out"), training.held_out, training.size, "render held-out scenes", progress
    )

    def after_step(done: int) -> None:
        if training.is_due(training.held_out_every, done):
            log({"held_out_iou": evaluate(model, tokenizer, held_out).mean_iou}, done)

    fit(
        learner,
        muon_adamw(learner, learning_rate=training.learning_rate, scale=training.muon_scale, weight_decay=0.01),
        lambda step: _loss(learner, tokenizer, _batch(pool, training, seed, step), training),
        training.plan(work_dir, name=f"base {seed}"),
        log=log,
        after_step=after_step,
    )
    return GroundingModel(model, tokenizer)


def _batch(pool: ScenePool, training: BaseTraining, seed: int, step: int) -> ScenePool:
    """The batch of a step: passes over the pool, each in an order drawn from (seed, pass)."""
    per_pass = len(pool.questions) // training.batch_size
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step // per_pass)
    order = torch.randperm(len(pool.questions), generator=generator)
    rows = order[(step % per_pass) * training.batch_size :][: training.batch_size]
    return ScenePool(pool.images[rows], [pool.questions[i] for i in rows], pool.boxes[rows], pool.colours[rows])


def _loss(
    learner: Any, tokenizer: DemoTokenizer, scenes: ScenePool, training: BaseTraining
) -> tuple[Tensor, dict[str, Tensor]]:
    model, head = learner["model"], learner["head"]
    batch = encode_prompts(tokenizer, scenes.images, scenes.questions)
    pictures = vision_tokens(model, batch)
    bins = box_bins(scenes.boxes, training.size)
    answer, accuracy = _answer_loss(model, tokenizer, batch, pictures, bins, training.bin_width)
    flat = pictures.flatten(0, 1)
    variance, covariance = variance_covariance(flat)
    some = slice(None, None, 4)  # a quarter of the tokens decode their pixels: the head is as wide as 28 x 28 x 3
    pixels = F.mse_loss(head.pixels(flat[some]), pixel_targets(batch["pixel_values"])[some])
    logits = head.maps(pictures)[torch.arange(len(bins)), :, scenes.colours]
    coverage = box_coverage(scenes.boxes, training.size, int(pictures.shape[1] ** 0.5))
    maps = F.binary_cross_entropy_with_logits(logits, coverage)
    loss = (
        answer
        + training.map_weight * maps
        + training.pixel_weight * pixels
        + training.variance_weight * variance
        + training.covariance_weight * covariance
    )
    curves = {
        "answer_loss": answer,
        "token_accuracy": accuracy,
        "map_loss": maps,
        "pixel_loss": pixels,
        "variance_loss": variance,
        "covariance_loss": covariance,
    }
    return loss, curves


def _answer_loss(
    model: Any, tokenizer: DemoTokenizer, batch: dict[str, Tensor], pictures: Tensor, bins: Tensor, width: float
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the four locations (soft targets) and the end token, and the accuracy of the locations."""
    prompt = prompt_embeddings(model, batch["input_ids"], pictures)
    answer = model.get_input_embeddings()(bins + tokenizer.first_location)
    embeddings = torch.cat([prompt, answer], dim=1)
    last = batch["position_ids"][:, :, -1:]
    positions = torch.cat([batch["position_ids"], last + torch.arange(1, 1 + answer.shape[1])], dim=2)
    out = model.model.language_model(inputs_embeds=embeddings, position_ids=positions, use_cache=False)
    logits = model.lm_head(out.last_hidden_state[:, prompt.shape[1] - 1 :])
    targets = torch.zeros_like(logits)
    first = tokenizer.first_location
    targets[:, :-1, first : first + NUM_BINS] = soft_bins(bins, NUM_BINS, width)
    targets[:, -1, tokenizer.end] = 1.0
    loss = -(targets * logits.log_softmax(-1)).sum(-1).mean()
    return loss, (logits[:, :-1].argmax(-1) == bins + first).float().mean()
