import numpy as np
import torch

from subspacelab.data.pictures import patchify
from subspacelab.synthetic.grounding.base import box_coverage, pixel_targets, soft_bins, variance_covariance


def test_pixel_targets_are_the_pixels_under_each_token() -> None:
    images = torch.zeros(1, 56, 84, 3, dtype=torch.uint8)
    images[0, 28:56, 28:56] = 255  # the cell in row 1, column 1: token 4 of 2 x 3
    targets = pixel_targets(patchify(images)[0])
    bright = (targets > 0).all(1)
    assert bright.tolist() == [False, False, False, False, True, False]


def test_coverage_sums_to_the_area_of_the_box() -> None:
    boxes = torch.tensor([[10.0, 20.0, 100.0, 60.0], [0.0, 0.0, 224.0, 28.0]])
    coverage = box_coverage(boxes, 224, 8)
    torch.testing.assert_close(coverage.sum(1) * 28**2, boxes[:, 2] * boxes[:, 3])
    assert torch.equal(coverage[1].view(8, 8)[0], torch.ones(8))
    assert coverage[1].view(8, 8)[1:].sum() == 0


def test_variance_and_covariance_tell_rich_from_collapsed_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    rich = 1.5 * torch.randn(4096, 16, generator=generator)
    line = torch.randn(4096, 1, generator=generator).expand(-1, 16)
    variance, covariance = variance_covariance(rich)
    assert variance == 0
    # Independent columns correlate by chance alone: 15 * 1/4096 on average.
    assert covariance < 0.01
    variance, covariance = variance_covariance(0.01 * line)
    assert variance > 0.9
    variance, covariance = variance_covariance(line)
    np.testing.assert_allclose(float(covariance), 15.0, rtol=1e-2)  # all correlations 1


def test_soft_bins_peak_at_the_bin() -> None:
    soft = soft_bins(torch.tensor([0, 9]), 16, 0.5)
    torch.testing.assert_close(soft.sum(-1), torch.ones(2))
    assert soft.argmax(-1).tolist() == [0, 9]
    np.testing.assert_allclose(float(soft[1, 8] / soft[1, 9]), np.exp(-2.0), rtol=1e-5)
    assert torch.equal(soft_bins(torch.tensor([3]), 16, 0.0), torch.eye(16)[3:4])
