"""A Qwen2.5-VL that reads a picture's merged tokens, whoever computed them, and answers a question with a box."""

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from subspacelab.checkpoints import open_source, resolve_reference
from subspacelab.checkpoints.index import CONFIG_NAME
from subspacelab.core.errors import CheckpointError
from subspacelab.data.boxes import bins_box, corners_box
from subspacelab.data.pictures import MERGED_PIXELS
from subspacelab.models.causal_lm import load_tokenizer, quiet, require_own_settings, require_placed
from subspacelab.models.qwen_vl import (
    BOX_START,
    IMAGE_PAD,
    LOCATIONS,
    VISION_END,
    VISION_START,
    prompt_embeddings,
    prompt_positions,
)

BEFORE = f"<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{VISION_START}"
AFTER = (
    f"{VISION_END}{{question}}\nLocate the answer in the picture and output its bounding box as JSON: "
    '{{"bbox_2d": [x1, y1, x2, y2]}}.<|im_end|>\n<|im_start|>assistant\n'
)
"""What stands before and after a picture in Qwen2.5-VL's chat template, with its own words for a box."""
MAX_WORDS = 64
"""New tokens of an answer in words; its box comes first."""
_NUMBER = r"\s*(-?\d{1,6}(?:\.\d{1,6})?)\s*"
_CORNERS = re.compile(rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]")


class LocationAnswers:
    """<vision_start> picture <vision_end> question <box_start>, and four location tokens, a bin of the side each."""

    num_new = 4
    ends: frozenset[int] = frozenset()

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self._id = tokenizer, tokenizer.convert_tokens_to_ids
        first = self._id(LOCATIONS[0])
        self.allowed = slice(first, first + len(LOCATIONS))

    def prompt(self, question: str, num_tokens: int) -> tuple[list[int], int]:
        """Ids of a prompt, and how many stand before the picture's."""
        picture = [self._id(VISION_START), *[self._id(IMAGE_PAD)] * num_tokens, self._id(VISION_END)]
        return [*picture, *_encode(self._tokenizer, question), self._id(BOX_START)], 1

    def box(self, answer: list[int], size: int) -> Float[Tensor, " 4"]:
        """The box of an answer's ids, x, y, w, h in a picture of `size` pixels per side."""
        return bins_box(torch.tensor(answer) - self.allowed.start, size)


class ChatAnswers:
    """Qwen2.5-VL's chat with a request for JSON; words that hold [x1, y1, x2, y2], in pixels (arXiv 2502.13923)."""

    num_new, allowed = MAX_WORDS, slice(None)

    def __init__(self, tokenizer: Any, ends: frozenset[int]) -> None:
        self._tokenizer, self.ends = tokenizer, ends

    def prompt(self, question: str, num_tokens: int) -> tuple[list[int], int]:
        """Ids of a prompt, and how many stand before the picture's."""
        before, after = (_encode(self._tokenizer, text) for text in (BEFORE, AFTER.format(question=question)))
        return [*before, *[self._tokenizer.convert_tokens_to_ids(IMAGE_PAD)] * num_tokens, *after], len(before)

    def box(self, answer: list[int], size: int) -> Float[Tensor, " 4"]:
        """The first box in an answer's ids, x, y, w, h; one without an area where there is none."""
        found = _CORNERS.search(self._tokenizer.decode(answer, skip_special_tokens=True))
        return corners_box(torch.tensor([float(n) for n in found.groups()] if found else [0.0] * 4))


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@dataclass(frozen=True)
class BoxReader:
    """The language model of a checkpoint, and how it is asked for a box; its vision tower is not kept."""

    language_model: Any
    """Blocks and embedding, a module of transformers."""
    head: nn.Module
    """Hidden states to logits."""
    answers: LocationAnswers | ChatAnswers
    """Prompts, and boxes of answers."""
    span: int | None = None
    """Tokens per side of the largest picture that the model has learned; positions in larger ones are interpolated."""

    @property
    def dim(self) -> int:
        """Width of a token."""
        return int(self.language_model.config.hidden_size)

    @torch.inference_mode()
    def read(
        self, pictures: Float[Tensor, "batch tokens dim"], questions: Sequence[str], size: int
    ) -> Float[Tensor, "batch 4"]:
        """The likeliest box of each question, x, y, w, h in a picture of `size` pixels per side.

        `pictures`: merged tokens in raster order, of a square each. Questions of one length are asked together.
        """
        prompts = [self.answers.prompt(question, pictures.shape[1]) for question in questions]
        by_length: dict[int, list[int]] = defaultdict(list)
        for row, (ids, _) in enumerate(prompts):
            by_length[len(ids)].append(row)
        boxes = torch.zeros(len(prompts), 4)
        for rows in by_length.values():
            asked, start = torch.tensor([prompts[row][0] for row in rows]), prompts[rows[0]][1]
            for row, answer in zip(rows, self._answer(asked, pictures[rows], start).tolist(), strict=True):
                end = next((i for i, token in enumerate(answer) if token in self.answers.ends), len(answer))
                boxes[row] = self.answers.box(answer[:end], size)
        return boxes

    def _answer(
        self, input_ids: Int[Tensor, "batch length"], pictures: Float[Tensor, "batch tokens dim"], start: int
    ) -> Int[Tensor, "batch new"]:
        """The likeliest tokens one after another, until each row has ended."""
        place, side = next(self.language_model.parameters()), math.isqrt(pictures.shape[1])
        embed, allowed = self.language_model.get_input_embeddings(), self.answers.allowed
        ends = torch.tensor(sorted(self.answers.ends), dtype=torch.long, device=place.device)
        ended = torch.zeros(len(input_ids), dtype=torch.bool, device=place.device)
        embeddings = prompt_embeddings(self.language_model, input_ids.to(place.device), pictures.to(place), start)
        span = self.span if self.span is not None and self.span < side else None
        positions = prompt_positions(side, input_ids.shape[1] + self.answers.num_new, start, span)
        positions = positions[:, None].expand(3, len(input_ids), -1).to(place.device)
        found: list[Tensor] = []
        cache, first = None, 0
        while len(found) < self.answers.num_new and not (found and ended.all()):
            last = first + embeddings.shape[1]
            out = self.language_model(
                inputs_embeds=embeddings, position_ids=positions[..., first:last], past_key_values=cache, use_cache=True
            )
            found.append(self.head(out.last_hidden_state[:, -1])[:, allowed].argmax(-1) + (allowed.start or 0))
            ended |= torch.isin(found[-1], ends)
            embeddings, cache, first = embed(found[-1])[:, None], out.past_key_values, last
        return torch.stack(found, dim=1).cpu()


def load_box_reader(reference: Path | str, device: torch.device, trained_size: int | None = None) -> BoxReader:
    """The reader of a checkpoint: folder, org/name[@revision] or pipeline:NAME; in float32 on a CPU, else as stored.

    `trained_size`: pixels per side of the largest picture that it has learned, if those that it reads are larger.

    One that has location tokens answers with these, any other with the words of Qwen2.5-VL's chat. CheckpointError or
    ValueError, in one line, for another family, missing weights, and a tokenizer without the tokens that are needed.
    """
    from transformers import Qwen2_5_VLForConditionalGeneration

    folder = resolve_reference(str(reference)).folder
    with open_source(folder) as checkpoint:
        if checkpoint.config.get("model_type") != "qwen2_5_vl":
            kind = checkpoint.config.get("model_type", "no model_type")
            raise CheckpointError(
                f"{reference}: config.json says {kind!r}; boxes are read by a 'qwen2_5_vl' checkpoint"
            )
        require_own_settings(checkpoint, folder / CONFIG_NAME)
        dtype = torch.float32 if device.type == "cpu" else "auto"
        with quiet():
            model, found = Qwen2_5_VLForConditionalGeneration.from_pretrained(
                folder, dtype=dtype, local_files_only=True, ignore_mismatched_sizes=True, output_loading_info=True
            )
        require_placed(folder, model, checkpoint, found)
    answers = _answers_of(reference, load_tokenizer(folder), model.generation_config.eos_token_id)
    span = None if trained_size is None else max(1, trained_size // MERGED_PIXELS)
    return BoxReader(model.model.language_model.eval().to(device), model.lm_head.to(device), answers, span)


def _answers_of(reference: Path | str, tokenizer: Any, ends: int | list[int] | None) -> LocationAnswers | ChatAnswers:
    known = tokenizer.get_vocab().keys()
    if {*LOCATIONS, VISION_START, IMAGE_PAD, VISION_END, BOX_START} <= known:
        return LocationAnswers(tokenizer)
    for token in ("<|im_start|>", "<|im_end|>", VISION_START, IMAGE_PAD, VISION_END):
        if token not in known:
            raise CheckpointError(f"{reference}: its tokenizer lacks {token}; give one with Qwen2.5-VL's own tokenizer")
    listed = [ends] if isinstance(ends, int) else [*(ends or ())]
    return ChatAnswers(tokenizer, frozenset([*listed, tokenizer.convert_tokens_to_ids("<|im_end|>")]))
