"""Pictures to the rows of pixels that a Qwen2.5-VL vision tower takes."""

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

PATCH, MERGE, FRAMES = 14, 2, 2
MERGED_PIXELS = PATCH * MERGE
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def patchify(
    images: UInt8[Tensor, "batch height width 3"],
) -> tuple[Float[Tensor, "patches 1176"], Int[Tensor, "batch 3"]]:
    """`pixel_values` and `image_grid_thw` of Qwen2VLImageProcessor, for pictures whose sides are multiples of 28.

    Each 14x14 patch is a row (channel, frame, y, x), normalised by CLIP's mean and deviation, the frame twice; rows go
    2x2 merge block by merge block, the blocks in raster order.
    """
    batch, height, width, _ = images.shape
    if height % MERGED_PIXELS or width % MERGED_PIXELS:
        raise ValueError(
            f"images: sides {height} x {width} are not multiples of {MERGED_PIXELS}; resize the pictures first"
        )
    scale = 1 / (255 * torch.tensor(STD))
    pixels = images.float() * scale - torch.tensor(MEAN) / torch.tensor(STD)
    rows, columns = height // PATCH, width // PATCH
    blocks = pixels.view(batch, rows // MERGE, MERGE, PATCH, columns // MERGE, MERGE, PATCH, 3)
    blocks = blocks.permute(0, 1, 4, 2, 5, 7, 3, 6)  # batch, block row, block column, row, column, channel, y, x
    frames = blocks.unsqueeze(6).expand(*blocks.shape[:6], FRAMES, PATCH, PATCH)
    grid = torch.tensor([[1, rows, columns]]).expand(batch, 3)
    return frames.reshape(batch * rows * columns, 3 * FRAMES * PATCH * PATCH), grid.contiguous()
