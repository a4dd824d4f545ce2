import pytest
import torch

from subspacelab.synthetic.grounding.grpo import iou_reward, pointing_reward

WORD = torch.tensor([40.0, 60.0, 80.0, 20.0])


@pytest.mark.parametrize(
    ("box", "iou", "pointing"),
    [
        ([40.0, 60.0, 80.0, 20.0], 1.0, 1.0),
        # Moved right by half the word: intersection 40 * 20, union 120 * 20; the centre is on the word's edge.
        ([80.0, 60.0, 80.0, 20.0], 1 / 3, (1 / 3 + 0.0) / 2),
        # Twice as high around the same centre: half covered, perfectly pointed.
        ([40.0, 50.0, 80.0, 40.0], 0.5, (0.5 + 1.0) / 2),
        # A quarter of the width to the right: 60 * 20 of 100 * 20; the centre is half way to the edge.
        ([60.0, 60.0, 80.0, 20.0], 0.6, (0.6 + 0.5) / 2),
        # No height: nothing covered, and pointing does not count either.
        ([40.0, 70.0, 80.0, 0.0], 0.0, 0.0),
        # Far away.
        ([150.0, 150.0, 30.0, 30.0], 0.0, 0.0),
    ],
)
def test_rewards_by_hand(box: list[float], iou: float, pointing: float) -> None:
    boxes = torch.tensor([box])
    # float32 arithmetic on numbers below 256.
    assert iou_reward(boxes, WORD).item() == pytest.approx(iou, abs=1e-6)
    assert pointing_reward(boxes, WORD).item() == pytest.approx(pointing, abs=1e-6)


def test_pointing_outside_the_word_earns_at_most_half_its_iou() -> None:
    generator = torch.Generator().manual_seed(0)
    boxes = torch.rand(500, 4, generator=generator) * 112
    centres = boxes[:, :2] + boxes[:, 2:] / 2
    outside = ((centres < WORD[:2]) | (centres > WORD[:2] + WORD[2:])).any(-1)
    assert outside.any()
    torch.testing.assert_close(
        pointing_reward(boxes, WORD)[outside], iou_reward(boxes, WORD)[outside] / 2, atol=0, rtol=0
    )
