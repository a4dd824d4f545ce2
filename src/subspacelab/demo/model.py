"""The demo's Qwen2.5-VL: a small configuration around the demo's tokenizer."""

from typing import Any

import torch

from subspacelab.demo.tokenizer import IMAGE_PAD, VIDEO_PAD, VISION_END, VISION_START, DemoTokenizer
from subspacelab.models.qwen_vl import QwenVLSizes, build_qwen_vl


def build_model(
    tokenizer: DemoTokenizer, *, seed: int, sizes: QwenVLSizes | None = None, initializer_range: float = 0.02
) -> Any:
    """A `Qwen2_5_VLForConditionalGeneration` with weights drawn from `seed`; torch's global generator is left alone."""
    token_ids = {
        "image_token_id": tokenizer.id(IMAGE_PAD),
        "video_token_id": tokenizer.id(VIDEO_PAD),
        "vision_start_token_id": tokenizer.id(VISION_START),
        "vision_end_token_id": tokenizer.id(VISION_END),
        "eos_token_id": tokenizer.end,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_qwen_vl(
            sizes or QwenVLSizes(),
            vocab_size=tokenizer.vocab_size,
            token_ids=token_ids,
            initializer_range=initializer_range,
        )
