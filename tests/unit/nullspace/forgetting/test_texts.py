"""Text for calibration, apart from what is held out and asked."""

import pytest
from tests.unit.nullspace.forgetting.chat_model import byte_tokenizer

from subspacelab.nullspace.forgetting.probes import asked_probes, calibration_probes, read_probes
from subspacelab.nullspace.forgetting.prompts import prompt_text
from subspacelab.nullspace.forgetting.texts import calibration_texts, held_out_prose


def test_no_paragraph_is_both_held_out_and_calibrated_on() -> None:
    held_out, calibration = held_out_prose(), calibration_texts("prose", byte_tokenizer())
    assert not set(held_out) & set(calibration)
    assert len(set(held_out)) == len(held_out)
    assert len(set(calibration)) == len(calibration)
    assert min(sum(map(len, texts)) for texts in (held_out, calibration)) > 50_000
    assert all("\n" not in text and text.endswith(".") for text in (*held_out, *calibration))


def test_calibration_questions_are_read_as_they_are_asked_and_are_asked_later_nowhere() -> None:
    tokenizer = byte_tokenizer()
    texts = calibration_texts("questions", tokenizer)
    first = calibration_probes(read_probes())[0]
    assert texts[0] == prompt_text(tokenizer, first.question) + f"{first.lead} {first.answer}."
    whole = "".join(texts)
    assert not [probe for probe in asked_probes(read_probes()) if probe.question in whole]


def test_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="must be questions or prose"):
        calibration_texts("poems", byte_tokenizer())  # type: ignore[arg-type]
