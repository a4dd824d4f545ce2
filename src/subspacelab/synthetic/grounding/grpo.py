"""Group-relative policy optimisation (GRPO, arXiv 2402.03300) of boxes: rewards, samples, advantages, loss."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from subspacelab.data.boxes import NUM_BINS, box_iou
from subspacelab.synthetic.grounding.model import NUM_COORDINATES, location_logits, read_prefix
from subspacelab.synthetic.grounding.tokenizer import DemoTokenizer

Reward = Callable[[Float[Tensor, "*batch 4"], Float[Tensor, "*batch 4"]], Float[Tensor, "*batch"]]


def iou_reward(boxes: Float[Tensor, "*batch 4"], truth: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch"]:
    """Intersection over union of boxes x, y, w, h, from 0 to 1; 0 for a box with a side of length 0."""
    return box_iou(boxes, truth)


def pointing_reward(boxes: Float[Tensor, "*batch 4"], truth: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch"]:
    """The mean of the IoU and of how centrally the box points: `(IoU + max(0, 1 - max_axis 2 |c - c'| / size')) / 2`.

    Boxes are x, y, w, h; c is the centre of the box, c' and size' are the word's. The distance is measured in half
    sizes of the word, so that a box whose centre is outside the word earns at most half its IoU; one with a side of
    length 0 earns 0.
    """
    miss = (boxes[..., :2] + boxes[..., 2:] / 2 - truth[..., :2] - truth[..., 2:] / 2).abs()
    pointing = (1 - (2 * miss / truth[..., 2:]).amax(-1)).clamp(min=0)
    inside = boxes[..., 2:].amin(-1) > 0
    return (box_iou(boxes, truth) + pointing * inside) / 2


REWARDS: dict[str, Reward] = {"iou": iou_reward, "pointing": pointing_reward}

# Groups spread by 0.13-0.17; one whose boxes all miss has no spread, but alternatives that hit: they must not count
# a million times.
SMALLEST_SPREAD = 0.05


def counterfactual_boxes(bins: Int[Tensor, "pictures group 4"]) -> Int[Tensor, "pictures group 4 16 4"]:
    """For each coordinate of each box, the 16 boxes that differ from it only in that coordinate."""
    boxes = bins[:, :, None, None, :].expand(-1, -1, 4, 16, -1).clone()
    for coordinate in range(4):
        boxes[:, :, coordinate, :, coordinate] = torch.arange(16, device=bins.device)
    return boxes


def policy_loss(
    log_probs: Float[Tensor, "pictures group 4 16"],
    counterfactuals: Float[Tensor, "pictures group 4 16"],
    rewards: Float[Tensor, "pictures group"],
) -> Float[Tensor, ""]:
    """`-mean sum_j sum_a p_j(a) A_j(a)`, with the group-relative advantage `A_j(a) = (Q_j(a) - mean r) / std r`.

    GRPO (arXiv 2402.03300) with one update per rollout, so that the ratio of new to old policy is 1 and clipping never
    acts; `mean` and `std` are those of the picture's group. Its `-mean A log p(box)` rewards only the sampled bins;
    here `Q_j(a)` is the reward of the sampled box with bin a as coordinate j (`counterfactual_boxes`), so that all 16
    bins, including those next to a miss, learn from one draw without a forward pass. This is exact for the last
    coordinate; for the others it ignores how later coordinates would respond to another bin.
    """
    mean, spread = rewards.mean(-1), rewards.std(-1).clamp(min=SMALLEST_SPREAD)
    advantages = (counterfactuals - mean[:, None, None, None]) / spread[:, None, None, None]
    return -(log_probs.exp() * advantages).sum((-1, -2)).mean()


def kl_to_reference(log_probs: Float[Tensor, "*batch 16"], reference: Float[Tensor, "*batch 16"]) -> Float[Tensor, ""]:
    """KL(policy || reference) per coordinate, in nats, summed over all 16 bins: the mean over `batch`.

    Exact at every visited prefix, while the k3 estimator (`low_var_kl`) uses only the sampled bin.
    """
    return (log_probs.exp() * (log_probs - reference)).sum(-1).mean()


def entropy(log_probs: Float[Tensor, "*batch 16"]) -> Float[Tensor, ""]:
    """Mean entropy per coordinate, in nats (log 16 = 2.77 for a uniform guess)."""
    return -(log_probs.exp() * log_probs).sum(-1).mean()


@dataclass(frozen=True)
class Rollout:
    """A group of boxes for every picture, and the policy's log-probabilities at each coordinate."""

    bins: Int[Tensor, "pictures group 4"]
    """x1, y1, x2, y2 in 0...15."""
    log_probs: Float[Tensor, "pictures group 4 16"]
    """Log-probabilities of all 16 bins at each choice; they carry gradients if these are on."""


def sample_boxes(
    model: Any,
    tokenizer: DemoTokenizer,
    batch: dict[str, Tensor],
    group: int,
    generator: torch.Generator,
    *,
    temperature: float = 1.0,
) -> Rollout:
    """Draws `group` boxes per picture from the policy softmax(logits / temperature)."""
    return _roll_out(model, tokenizer, batch, group, lambda t, log_probs: _draw(log_probs, generator), temperature)


def score_boxes(
    model: Any,
    tokenizer: DemoTokenizer,
    batch: dict[str, Tensor],
    bins: Int[Tensor, "pictures group 4"],
    *,
    temperature: float = 1.0,
) -> Rollout:
    """Log-probabilities along given boxes ("teacher forcing")."""
    return _roll_out(model, tokenizer, batch, bins.shape[1], lambda t, log_probs: bins[:, :, t], temperature)


def _roll_out(
    model: Any, tokenizer: DemoTokenizer, batch: dict[str, Tensor], group: int, choose: Any, temperature: float
) -> Rollout:
    """Reads each prompt once and appends its `group` answers to it in one sequence.

    Coordinate t of all answers is one forward pass of `group` positions. Each sees the prompt and the earlier
    coordinates of its own answer, not of the others, at the rotary position that it would have alone. So prompt and
    picture cost one forward and one backward pass for any group size, and no cache is copied per answer.
    """
    prefix = read_prefix(model, tokenizer, batch)
    seen = batch["input_ids"].shape[1]
    log_probs = [(prefix.logits / temperature).log_softmax(-1)[:, None].expand(-1, group, -1)]
    bins = [choose(0, log_probs[0])]
    for t in range(1, NUM_COORDINATES):
        out = model.model.language_model(
            inputs_embeds=model.get_input_embeddings()(bins[-1] + tokenizer.first_location),
            position_ids=torch.full((3, len(bins[-1]), group), prefix.position + t - 1),
            attention_mask=_own_answer_mask(len(bins[-1]), group, seen, t),
            past_key_values=prefix.cache,
            use_cache=True,
        )
        logits = location_logits(model, tokenizer, out.last_hidden_state)
        log_probs.append((logits / temperature).log_softmax(-1))
        bins.append(choose(t, log_probs[t]))
    return Rollout(torch.stack(bins, dim=2), torch.stack(log_probs, dim=2))


def _own_answer_mask(pictures: int, group: int, seen: int, steps: int) -> Bool[Tensor, "pictures 1 group keys"]:
    """Answer i sees all `seen` tokens of the prompt and, of each later coordinate, only its own."""
    own = torch.eye(group, dtype=torch.bool).repeat(1, steps)
    row = torch.cat([torch.ones(group, seen, dtype=torch.bool), own], dim=1)
    return row.expand(pictures, 1, group, -1)


def _draw(log_probs: Float[Tensor, "pictures group 16"], generator: torch.Generator) -> Int[Tensor, "pictures group"]:
    rows = log_probs.detach().exp().reshape(-1, NUM_BINS)
    return torch.multinomial(rows, 1, generator=generator).view(log_probs.shape[:2])
