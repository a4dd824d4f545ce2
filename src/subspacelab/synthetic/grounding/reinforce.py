"""The reinforcement stages: a checkpoint trained further by GRPO on rendered scenes, rewarded for its boxes."""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, TypeAdapter
from torch import Tensor

from subspacelab.core.callbacks import Log, Progress, no_log, no_progress
from subspacelab.core.files import read_json, replace_folder, sha256_file, write_json
from subspacelab.core.settings import Count, NotNegative, Positive, settings
from subspacelab.data.boxes import bins_box
from subspacelab.models.qwen_vl import load_qwen_vl
from subspacelab.synthetic.grounding.evaluation import Evaluation, evaluate, mean_and_error
from subspacelab.synthetic.grounding.grpo import (
    REWARDS,
    counterfactual_boxes,
    entropy,
    kl_to_reference,
    policy_loss,
    sample_boxes,
    score_boxes,
)
from subspacelab.synthetic.grounding.model import GroundingModel, GroundingTraining, encode_prompts
from subspacelab.synthetic.grounding.scenes import render_scenes, scene, scene_tensors, split_seed
from subspacelab.synthetic.grounding.tokenizer import DemoTokenizer
from subspacelab.training.fit import fit
from subspacelab.training.muon import muon_adamw


@settings
class RlTraining(GroundingTraining):
    """Settings of a reinforcement stage."""

    reward: Literal["iou", "pointing"] = "iou"
    """Reward: iou or pointing."""
    steps: Count = 70
    """Optimizer steps; each uses new scenes."""
    pictures: Count = 16
    """Scenes per step."""
    group: Annotated[int, Field(ge=2)] = 16
    """Boxes sampled per scene; their spread determines the advantage."""
    temperature: Positive = 0.5
    """The policy is softmax(logits / temperature): close to the greedy box, by which the checkpoint is evaluated."""
    learning_rate: Positive = 1e-4
    """Peak learning rate of AdamW, in a one-cycle schedule."""
    kl_weight: NotNegative = 0.02
    """Weight of KL(policy || starting checkpoint)."""
    clip: Positive = 10.0
    """Largest gradient norm."""
    held_out_every: Count = 40
    """Steps between points of the curve of IoU."""
    snapshot_every: Count = 20
    """Steps between snapshots."""

    def passed(self) -> "list[Passed]":
        """Progress of the training after 1/4, 1/2 and 3/4 of its steps; fewer if it has less than four steps."""
        rates = [self.plan(Path(), name="").learning_rate(step) for step in range(self.steps)]
        steps = sorted({quarter * self.steps // 4 for quarter in (1, 2, 3)} - {0})
        return [Passed(step, step / self.steps, sum(rates[:step]) / sum(rates)) for step in steps]


PATH = "path.json"
"""File in a folder of intermediate checkpoints: the progress of the training at each."""


@dataclass(frozen=True)
class Passed:
    """Progress of a training after some of its steps."""

    step: int
    """Steps taken."""
    of_steps: float
    """Share of all steps."""
    of_rates: float
    """Share of the sum of all learning rates: the progress if each step counts by its learning rate."""


def write_training_path(folder: Path, saved: Path, passed: Sequence[Passed]) -> None:
    """Copies the checkpoints that `train_rl` left in `saved` to `folder`, with `path.json`: the progress at each.

    `passed` is empty for a checkpoint that was not trained here.
    """
    with replace_folder(folder) as partial:
        for entry in passed:
            shutil.copytree(saved / f"step{entry.step}", partial / f"step{entry.step}")
        write_json(partial / PATH, [asdict(entry) for entry in passed])


def read_training_path(folder: Path) -> list[Passed]:
    """Reads what `write_training_path` wrote; the checkpoints are `folder/step<n>`."""
    return TypeAdapter(list[Passed]).validate_python(read_json(folder / PATH))


def train_rl(
    base_folder: Path,
    work_dir: Path,
    *,
    training: RlTraining,
    stage: str,
    seed: int,
    log: Log = no_log,
    progress: Progress = no_progress,
    path: Path | None = None,
) -> GroundingModel:
    """Trains the checkpoint `base_folder` further by GRPO.

    Minimises `policy_loss + kl_weight KL(policy || base)` over boxes drawn from the current policy. The scenes depend
    on (`seed`, `stage`), so stages with different names see different scenes. Logs reward, KL, entropy and gradient
    norm, and the held-out IoU with its paired gain over the base (mean and standard error). A killed run continues from
    `work_dir` to the same bytes.
    """
    start = GroundingModel.load(base_folder)
    tokenizer, model = start.tokenizer, start.model
    reference = load_qwen_vl(base_folder).requires_grad_(False)
    held_out = render_scenes(
        split_seed(seed, "held_out"), training.held_out, training.size, "render held-out scenes", progress
    )
    before = evaluate(model, tokenizer, held_out)
    log(_held_out_curves(before, before), 0)

    def after_step(done: int) -> None:
        if training.is_due(training.held_out_every, done):
            log(_held_out_curves(before, evaluate(model, tokenizer, held_out)), done)
        if path is not None and done in {entry.step for entry in training.passed()}:
            start.save(path / f"step{done}")

    fit(
        model,
        muon_adamw(model, learning_rate=training.learning_rate, scale=training.muon_scale),
        lambda step: _loss((model, reference), tokenizer, training, split_seed(seed, stage), step),
        training.plan(work_dir, name=f"{stage} {seed} {_weights_digest(base_folder)}"),
        log=log,
        after_step=after_step,
    )
    return GroundingModel(model, tokenizer)


def _loss(
    models: tuple[Any, Any], tokenizer: DemoTokenizer, training: RlTraining, scene_seed: int, step: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a step for (policy, reference); scenes and draws are determined by `scene_seed` and `step`."""
    policy, reference = models
    indices = range(step * training.pictures, (step + 1) * training.pictures)
    images, questions, boxes = scene_tensors([scene(scene_seed, i, training.size) for i in indices])
    batch = encode_prompts(tokenizer, images, questions)
    draws = torch.Generator().manual_seed(scene_seed * 1_000_003 + step)
    rollout = sample_boxes(policy, tokenizer, batch, training.group, draws, temperature=training.temperature)
    with torch.no_grad():
        expected = score_boxes(reference, tokenizer, batch, rollout.bins, temperature=training.temperature).log_probs
    rewards = REWARDS[training.reward](bins_box(rollout.bins, training.size), boxes[:, None])
    kl = kl_to_reference(rollout.log_probs, expected)
    alternatives = bins_box(counterfactual_boxes(rollout.bins), training.size)
    counterfactuals = REWARDS[training.reward](alternatives, boxes[:, None, None, None])
    loss = policy_loss(rollout.log_probs, counterfactuals, rewards) + training.kl_weight * kl
    curves = {
        "reward_mean": rewards.mean(),
        "reward_std": rewards.std(-1).mean(),
        "kl": kl,
        "entropy": entropy(rollout.log_probs),
    }
    return loss, curves


def _held_out_curves(before: Evaluation, now: Evaluation) -> dict[str, float]:
    gain, gain_se = mean_and_error(now.ious - before.ious)
    return {
        "held_out_iou": now.mean_iou,
        "held_out_iou_se": now.mean_iou_se,
        "held_out_gain": gain,
        "held_out_gain_se": gain_se,
    }


def _weights_digest(folder: Path) -> str:
    return " ".join(sha256_file(path) for path in sorted(folder.glob("*.safetensors")))
