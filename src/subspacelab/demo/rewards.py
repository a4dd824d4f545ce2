"""Rewards of a predicted box: how well it covers the word, and whether it points at it."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from subspacelab.demo.evaluate import box_iou

Reward = Callable[[Float[Tensor, "*batch 4"], Float[Tensor, "*batch 4"]], Float[Tensor, "*batch"]]


def iou_reward(boxes: Float[Tensor, "*batch 4"], truth: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch"]:
    """Intersection over union of boxes x, y, w, h: in 0...1, 0 for a box with a zero side."""
    return box_iou(boxes, truth)


def pointing_reward(boxes: Float[Tensor, "*batch 4"], truth: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch"]:
    """Half the IoU, half how centrally the box points: `(IoU + max(0, 1 - max_axis 2 |c - c'| / size')) / 2`.

    Boxes are x, y, w, h; c is the centre of the box, c' and size' are the word's. The distance counts in half sizes of
    the word, so a box whose centre lies outside the word earns at most half its IoU; one with a zero side earns 0.
    """
    miss = (boxes[..., :2] + boxes[..., 2:] / 2 - truth[..., :2] - truth[..., 2:] / 2).abs()
    pointing = (1 - (2 * miss / truth[..., 2:]).amax(-1)).clamp(min=0)
    inside = boxes[..., 2:].amin(-1) > 0
    return (box_iou(boxes, truth) + pointing * inside) / 2


REWARDS: dict[str, Reward] = {"iou": iou_reward, "pointing": pointing_reward}
