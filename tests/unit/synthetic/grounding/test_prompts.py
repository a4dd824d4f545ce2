import pytest
import torch
from tests.unit.synthetic.tiny import TINY

from subspacelab.synthetic.grounding.evaluation import box_iou
from subspacelab.synthetic.grounding.model import bins_box, box_bins, build_model, encode_prompts
from subspacelab.synthetic.grounding.tokenizer import build_tokenizer


def test_positions_are_those_of_transformers() -> None:
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, seed=0, sizes=TINY)
    batch = encode_prompts(tokenizer, torch.zeros(2, 112, 112, 3, dtype=torch.uint8), ["Where is the red word?"] * 2)
    theirs, _ = model.model.get_rope_index(
        batch["input_ids"], mm_token_type_ids=batch["mm_token_type_ids"], image_grid_thw=batch["image_grid_thw"]
    )
    assert torch.equal(batch["position_ids"], theirs)


def test_questions_of_two_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"token counts \[\d+, \d+\] differ"):
        encode_prompts(build_tokenizer(), torch.zeros(2, 56, 56, 3, dtype=torch.uint8), ["a b", "a b c d"])


def test_a_box_comes_back_within_half_a_bin() -> None:
    boxes = torch.tensor([[10.0, 20.0, 100.0, 60.0], [0.0, 0.0, 224.0, 224.0], [100.0, 180.0, 50.0, 40.0]])
    back = bins_box(box_bins(boxes, 224), 224)
    corners = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
    back_corners = torch.cat([back[:, :2], back[:, :2] + back[:, 2:]], 1)
    assert (corners - back_corners).abs().max() <= 7.0  # 224 / 16 / 2
    assert box_iou(back, boxes).min() > 0.6


def test_crossed_corners_have_no_area() -> None:
    assert bins_box(torch.tensor([[9, 3, 2, 5]]), 224)[0, 2] == 0
