"""What the trainings on rendered scenes share: their settings, and the checkpoint that comes of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from subspacelab.core.files import replace_folder
from subspacelab.core.settings import Count, Positive, settings
from subspacelab.models.qwen_vl import load_qwen_vl, save_qwen_vl
from subspacelab.synthetic.grounding.tokenizer import DemoTokenizer, read_tokenizer, write_tokenizer
from subspacelab.training.schedules import Training


@settings
class GroundingTraining(Training):
    """How a checkpoint is trained on rendered scenes by Muon and AdamW, and looked at on held-out ones."""

    size: Count = 224
    """Pixels per side while training."""
    muon_scale: Positive = 20.0
    """Muon's learning rate over AdamW's."""
    held_out: Count = 128
    """Held-out scenes in the curve of IoU."""
    held_out_every: Count = 100
    """Steps between its points."""
    evaluated: Count = 512
    """Held-out scenes in the figures of the finished checkpoint."""


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
