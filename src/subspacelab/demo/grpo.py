"""Group-relative policy optimisation (GRPO, arXiv 2402.03300) of box tokens: advantages, loss, KL and entropy."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

# Groups spread by 0.13-0.17; one whose boxes all miss has no spread, but alternatives that hit: they must not count
# a million times.
SMALLEST_SPREAD = 0.05


def counterfactual_boxes(bins: Int[Tensor, "pictures group 4"]) -> Int[Tensor, "pictures group 4 16 4"]:
    """For each coordinate of each box, the 16 boxes that differ from it in that coordinate alone."""
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

    GRPO (arXiv 2402.03300) where every rollout serves one update, so that the ratio of new to old policy is 1 and
    clipping never acts; `mean` and `std` are those of the picture's group. Its `-mean A log p(box)` credits the
    sampled bins alone; here `Q_j(a)` is the reward of the sampled box with bin a as coordinate j
    (`counterfactual_boxes`), so that all 16 bins, those next to a miss too, learn from one draw without a forward
    pass. Exact for the last coordinate, and for the others but for what later ones would answer to another bin.
    """
    mean, spread = rewards.mean(-1), rewards.std(-1).clamp(min=SMALLEST_SPREAD)
    advantages = (counterfactuals - mean[:, None, None, None]) / spread[:, None, None, None]
    return -(log_probs.exp() * advantages).sum((-1, -2)).mean()


def kl_to_reference(log_probs: Float[Tensor, "*batch 16"], reference: Float[Tensor, "*batch 16"]) -> Float[Tensor, ""]:
    """KL(policy || reference) per coordinate, in nats, summed over all 16 bins: the mean over `batch`.

    Exact at every visited prefix, where the k3 estimator (`low_var_kl`) looks at the sampled bin alone.
    """
    return (log_probs.exp() * (log_probs - reference)).sum(-1).mean()


def entropy(log_probs: Float[Tensor, "*batch 16"]) -> Float[Tensor, ""]:
    """Mean entropy per coordinate, in nats (log 16 = 2.77 for a uniform guess)."""
    return -(log_probs.exp() * log_probs).sum(-1).mean()
