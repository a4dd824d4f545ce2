"""Boxes, their overlap and their bins."""

import torch

from subspacelab.data.boxes import bins_box, box_bins, box_iou, corners_box


def test_iou_of_known_boxes() -> None:
    a = torch.tensor([0.0, 0.0, 10.0, 10.0])
    others = torch.tensor([[0.0, 0.0, 10.0, 10.0], [5.0, 0.0, 10.0, 10.0], [20.0, 0.0, 1.0, 1.0], [3.0, 3.0, 0.0, 0.0]])
    torch.testing.assert_close(box_iou(a, others), torch.tensor([1.0, 1 / 3, 0.0, 0.0]))


def test_a_box_comes_back_within_half_a_bin() -> None:
    boxes = torch.tensor([[10.0, 20.0, 100.0, 60.0], [0.0, 0.0, 224.0, 224.0], [100.0, 180.0, 50.0, 40.0]])
    back = bins_box(box_bins(boxes, 224), 224)
    corners = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
    back_corners = torch.cat([back[:, :2], back[:, :2] + back[:, 2:]], 1)
    assert (corners - back_corners).abs().max() <= 7.0  # 224 / 16 / 2
    assert box_iou(back, boxes).min() > 0.6


def test_crossed_corners_have_no_area() -> None:
    assert bins_box(torch.tensor([[9, 3, 2, 5]]), 224)[0, 2] == 0
    assert corners_box(torch.tensor([5.0, 9.0, 7.0, 2.0])).tolist() == [5, 9, 2, 0]
