import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from subspacelab.data.pictures import patchify


@pytest.mark.parametrize("size", [224, 448])
def test_equals_the_processor_of_transformers(size: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    theirs = Qwen2VLImageProcessorPil()([Image.fromarray(i) for i in images], return_tensors="pt")
    pixels, grid = patchify(torch.from_numpy(images))
    assert torch.equal(grid, theirs["image_grid_thw"])
    # Both compute (x / 255 - mean) / std in float32, in another order: values up to 2.7, rounding below 1e-6.
    torch.testing.assert_close(pixels, theirs["pixel_values"], rtol=0, atol=2e-6)


def test_refuses_sides_that_no_cell_divides() -> None:
    with pytest.raises(ValueError, match="30 x 56 are not multiples of 28"):
        patchify(torch.zeros(1, 30, 56, 3, dtype=torch.uint8))
