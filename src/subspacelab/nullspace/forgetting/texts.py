"""Text for calibration and, apart from it, held-out English: both are here without a network."""

from typing import Any, Literal

CalibrationKind = Literal["questions", "prose"]


def held_out_prose() -> list[str]:
    """Paragraphs that no calibration reads."""
    raise NotImplementedError


def calibration_texts(kind: CalibrationKind, tokenizer: Any) -> list[str]:
    """Documents to calibrate on: questions with their answers as the model reads them (none of them is a probe that
    is asked later), or prose."""
    raise NotImplementedError
