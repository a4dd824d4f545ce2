"""The small Qwen2.5-VL of the synthetic study: configuration, prompts, settings, and decoding of boxes."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from subspacelab.core.files import replace_folder
from subspacelab.core.settings import Count, Positive, settings
from subspacelab.data.boxes import NUM_BINS, bins_box
from subspacelab.data.pictures import MERGED_PIXELS, patchify
from subspacelab.models.qwen_vl import (
    BOX_START,
    IMAGE_PAD,
    VISION_END,
    VISION_START,
    QwenVLSizes,
    build_qwen_vl,
    load_qwen_vl,
    prompt_embeddings,
    prompt_positions,
    save_qwen_vl,
    vision_tokens,
)
from subspacelab.synthetic.grounding.tokenizer import VIDEO_PAD, DemoTokenizer, read_tokenizer, write_tokenizer
from subspacelab.training.fit import Training


def build_model(
    tokenizer: DemoTokenizer, *, seed: int, sizes: QwenVLSizes | None = None, initializer_range: float = 0.02
) -> Any:
    """A `Qwen2_5_VLForConditionalGeneration` with weights drawn from `seed`; torch's global generator is unchanged."""
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


NUM_COORDINATES = 4


def encode_prompts(
    tokenizer: DemoTokenizer, images: UInt8[Tensor, "batch size size 3"], questions: Sequence[str]
) -> dict[str, Tensor]:
    """<vision_start> image <vision_end> question <box_start>, one row per picture, no padding.

    Returns input_ids and attention_mask [batch length], pixel_values [batch*patches 1176], image_grid_thw [batch 3],
    mm_token_type_ids [batch length] and position_ids [3 batch length]. ValueError for questions of different lengths.
    """
    texts = [tokenizer.encode(question) for question in questions]
    if len({len(t) for t in texts}) != 1:
        lengths = sorted({len(t) for t in texts})
        raise ValueError(f"questions: token counts {lengths} differ in one batch; pass questions of one length")
    pixel_values, grid = patchify(images)
    side = images.shape[1] // MERGED_PIXELS
    start, end, box = (tokenizer.id(t) for t in (VISION_START, VISION_END, BOX_START))
    picture = [start] + [tokenizer.id(IMAGE_PAD)] * side**2 + [end]
    input_ids = torch.tensor([[*picture, *text, box] for text in texts])
    image_type = (input_ids == tokenizer.id(IMAGE_PAD)).int()
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "pixel_values": pixel_values,
        "image_grid_thw": grid,
        "mm_token_type_ids": image_type,
        "position_ids": prompt_positions(side, input_ids.shape[1])[:, None, :].expand(3, len(texts), -1),
    }


@dataclass(frozen=True)
class Boxes:
    """Decoded boxes, a row per picture."""

    bins: Int[Tensor, "rows 4"]
    """x1, y1, x2, y2 in 0...15."""
    boxes: Float[Tensor, "rows 4"]
    """x, y, w, h in pixels."""
    log_probs: Float[Tensor, "rows 4"]
    """Log-probability of each chosen bin among the 16 (temperature 1)."""


@dataclass(frozen=True)
class Prefix:
    """A prompt that the language model has read."""

    logits: Float[Tensor, "rows 16"]
    """Logits of the first coordinate, over the location tokens."""
    cache: Any
    """transformers' key-value cache."""
    position: int
    """Rotary position of the next token."""

    def copy(self) -> "Prefix":
        """One whose cache grows on its own."""
        return replace(self, cache=deepcopy(self.cache))


def read_prefix(model: Any, tokenizer: DemoTokenizer, batch: dict[str, Tensor]) -> Prefix:
    """Encodes each picture once and fills the cache."""
    embeddings = prompt_embeddings(model, batch["input_ids"], vision_tokens(model, batch))
    positions = batch["position_ids"]
    out = model.model.language_model(inputs_embeds=embeddings, position_ids=positions, use_cache=True)
    logits = location_logits(model, tokenizer, out.last_hidden_state[:, -1])
    return Prefix(logits, out.past_key_values, int(positions[0, 0, -1]) + 1)


def read_bins(
    model: Any, tokenizer: DemoTokenizer, prefix: Prefix, bins: Int[Tensor, "rows n"]
) -> Float[Tensor, "rows n 16"]:
    """Logits over the location tokens after each of `bins`; the cache grows by n."""
    embeddings = model.get_input_embeddings()(bins + tokenizer.first_location)
    positions = (torch.arange(bins.shape[1]) + prefix.position).expand(3, len(bins), -1)
    out = model.model.language_model(
        inputs_embeds=embeddings, position_ids=positions, past_key_values=prefix.cache, use_cache=True
    )
    return location_logits(model, tokenizer, out.last_hidden_state)


def location_logits(
    model: Any, tokenizer: DemoTokenizer, hidden: Float[Tensor, "*batch dim"]
) -> Float[Tensor, "*batch 16"]:
    """Only the logits of the location tokens."""
    first = tokenizer.first_location
    logits: Tensor = hidden @ model.lm_head.weight[first : first + NUM_BINS].T
    return logits


@torch.no_grad()
def decode_boxes(
    model: Any,
    tokenizer: DemoTokenizer,
    batch: dict[str, Tensor],
    *,
    size: int,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> Boxes:
    """Four location tokens per picture: the likeliest at temperature 0, else sampled with `generator`."""
    prefix = read_prefix(model, tokenizer, batch)
    return decode_after(model, tokenizer, prefix, size=size, temperature=temperature, generator=generator)


@torch.no_grad()
def decode_after(
    model: Any,
    tokenizer: DemoTokenizer,
    prefix: Prefix,
    *,
    size: int,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> Boxes:
    """As `decode_boxes`, after a prompt that is read; its cache grows."""
    logits, chosen, log_probs = prefix.logits, [], []
    for i in range(NUM_COORDINATES):
        bins = choose(logits, temperature, generator)
        chosen.append(bins)
        log_probs.append(logits.log_softmax(-1).gather(-1, bins[:, None])[:, 0])
        if i + 1 < NUM_COORDINATES:
            logits = read_bins(model, tokenizer, prefix, bins[:, None])[:, 0]
            prefix = Prefix(logits, prefix.cache, prefix.position + 1)
    bins = torch.stack(chosen, dim=1)
    return Boxes(bins, bins_box(bins, size), torch.stack(log_probs, dim=1))


def choose(
    logits: Float[Tensor, "rows 16"], temperature: float, generator: torch.Generator | None
) -> Int[Tensor, " rows"]:
    """The likeliest bin at temperature 0, else one drawn from softmax(logits / temperature)."""
    if temperature == 0.0:
        return logits.argmax(-1)
    return torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[:, 0]


@settings
class GroundingTraining(Training):
    """Settings of a training on rendered scenes by Muon and AdamW, with evaluation on held-out ones."""

    size: Count = 224
    """Pixels per side while training."""
    muon_scale: Positive = 20.0
    """Ratio of Muon's learning rate to AdamW's."""
    held_out: Count = 128
    """Number of held-out scenes for the curve of IoU."""
    held_out_every: Count = 100
    """Steps between points of that curve."""
    evaluated: Count = 512
    """Number of held-out scenes for the evaluation of the finished checkpoint."""


@dataclass(frozen=True)
class GroundingModel:
    """A checkpoint in memory."""

    model: Any
    """A `Qwen2_5_VLForConditionalGeneration`."""
    tokenizer: DemoTokenizer
    """Its own."""

    def save(self, folder: Path) -> None:
        """Writes a Hugging Face folder, whole or not at all."""
        with replace_folder(folder) as partial:
            save_qwen_vl(self.model, partial)
            write_tokenizer(self.tokenizer, partial)

    @classmethod
    def load(cls, folder: Path) -> "GroundingModel":
        """Reads what `save` wrote, in float32, in evaluation mode."""
        return cls(load_qwen_vl(folder), read_tokenizer(folder))
