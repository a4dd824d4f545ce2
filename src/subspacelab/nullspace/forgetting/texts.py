"""Text for calibration and, apart from it, held-out English: what is here without a network.

The prose is that of the language reference which comes with Python (`pydoc_data.topics`, PSF License 2.0). Its
sentences differ a little from one version of Python to the next; compare models within one.
"""

from pydoc_data.topics import topics
from typing import Any, Literal

from subspacelab.data.text import paragraphs
from subspacelab.nullspace.forgetting.probes import calibration_probes, read_probes
from subspacelab.nullspace.forgetting.prompts import prompt_text

CalibrationKind = Literal["questions", "prose"]

BORDER = "g"
"""Topics with a name before it are calibration text, the others are held out."""
SHORTEST = 60
"""Characters of a paragraph; shorter ones are headings and remarks."""


def held_out_prose() -> list[str]:
    """Paragraphs that no calibration reads; some 65,000 characters."""
    known = set(_prose(held_out=False))
    return [text for text in _prose(held_out=True) if text not in known]  # topics share sections


def calibration_texts(kind: CalibrationKind, tokenizer: Any) -> list[str]:
    """Documents to calibrate on: `questions`, as this tokenizer's model reads them, with their answers (none of them
    is asked later), or `prose`.

    ValueError for another kind.
    """
    if kind == "prose":
        return _prose(held_out=False)
    if kind != "questions":
        raise ValueError(f"calibration kind {kind!r}: must be questions or prose")
    probes = calibration_probes(read_probes())
    return [prompt_text(tokenizer, probe.question) + probe.lead + probe.response for probe in probes]


def _prose(*, held_out: bool) -> list[str]:
    """Each paragraph once and in one line: what begins with a letter at the margin and ends as a sentence does."""
    names = [name for name in sorted(topics) if (name >= BORDER) == held_out]
    found = [text for name in names for text in paragraphs(topics[name]) if text[0].isalpha() and text.endswith(".")]
    lines = (" ".join(text.split()) for text in found)
    return list(dict.fromkeys(text for text in lines if len(text) >= SHORTEST))
