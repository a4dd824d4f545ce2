"""The smallest Qwen2.5-VL in which every part of the real one does something."""

from subspacelab.models.qwen_vl import QwenVLSizes

TINY = QwenVLSizes(
    vision_hidden=16,
    vision_depth=2,
    vision_heads=2,
    vision_intermediate=32,
    hidden=32,
    depth=2,
    heads=2,
    intermediate=48,
)
