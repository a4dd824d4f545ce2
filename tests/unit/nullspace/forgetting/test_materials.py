"""What models are scored on, as tokens."""

from dataclasses import replace

import pytest
from tests.unit.nullspace.forgetting.chat_model import PROBES, byte_tokenizer, tiny_llama, tiny_materials

from subspacelab.models.teacher_forcing import response_of
from subspacelab.nullspace.forgetting.prompts import encode_example
from subspacelab.nullspace.forgetting.texts import held_out_prose


def test_rows_say_what_is_asked() -> None:
    tokenizer = byte_tokenizer()
    found = tiny_materials(tokenizer, tiny_llama().config)
    for probe, row in zip(PROBES, found.probe_rows, strict=True):
        assert tokenizer.decode(response_of(row)) == f" {probe.answer}."
        assert tokenizer.decode(row.input_ids).endswith(
            f"{probe.question}<end>\n<s>assistant\n{probe.lead} {probe.answer}."
        )
    assert found.test_rows == [encode_example(tokenizer, row, 500) for row in found.task.test], "as in training"
    assert found.answers["capital"].keys() == {"Uvo", "Uvi", "Wex", "Y"}
    text = " ".join(held_out_prose())
    assert all(tokenizer.decode(row.input_ids).replace("\n\n", " ") in text for row in found.window_rows)


def test_the_fingerprint_tells_other_materials() -> None:
    found = tiny_materials(byte_tokenizer(), tiny_llama().config)
    assert found.fingerprint == tiny_materials(byte_tokenizer(), tiny_llama().config).fingerprint
    for part in ("probe_rows", "validation_rows", "test_rows", "window_rows"):
        assert replace(found, **{part: getattr(found, part)[:-1]}).fingerprint != found.fingerprint
    assert replace(found, answers={}).fingerprint != found.fingerprint


def test_what_the_model_cannot_read_is_refused() -> None:
    with pytest.raises(ValueError, match="more than the model has positions"):
        tiny_materials(byte_tokenizer(), tiny_llama(positions=60).config)
    with pytest.raises(ValueError, match="ask for fewer or shorter windows"):
        tiny_materials(byte_tokenizer(), tiny_llama().config, num_windows=10_000)
