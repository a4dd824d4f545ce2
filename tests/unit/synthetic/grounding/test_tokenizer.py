from pathlib import Path

import pytest
from transformers import AutoTokenizer

from subspacelab.data.boxes import NUM_BINS
from subspacelab.models.qwen_vl import LOCATIONS
from subspacelab.synthetic.grounding.scenes import COLOURS, QUESTIONS
from subspacelab.synthetic.grounding.tokenizer import build_tokenizer, read_tokenizer, write_tokenizer


def test_every_question_has_one_length() -> None:
    tokenizer = build_tokenizer()
    lengths = {len(tokenizer.encode(q.format(c))) for q in QUESTIONS for c in COLOURS}
    assert len(lengths) == 1


def test_location_tokens_are_consecutive_and_whole() -> None:
    tokenizer = build_tokenizer()
    ids = [tokenizer.id(t) for t in LOCATIONS]
    assert ids == list(range(tokenizer.first_location, tokenizer.first_location + NUM_BINS))
    assert tokenizer.encode("".join(LOCATIONS)) == ids


def test_any_text_survives() -> None:
    tokenizer = build_tokenizer()
    text = "Zebra, 42% où?"
    assert tokenizer.tokenizer.decode(tokenizer.encode(text)) == text


def test_transformers_reads_the_folder(tmp_path: Path) -> None:
    ours = build_tokenizer()
    write_tokenizer(ours, tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    text = "Where is the red word?<|box_start|><loc_3>"
    assert theirs(text)["input_ids"] == ours.encode(text) == read_tokenizer(tmp_path).encode(text)
    assert (theirs.eos_token_id, theirs.pad_token_id, len(theirs)) == (ours.end, ours.end, ours.vocab_size)


def test_learning_it_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_tokenizer(build_tokenizer(), tmp_path / name)
    assert (tmp_path / "a" / "tokenizer.json").read_bytes() == (tmp_path / "b" / "tokenizer.json").read_bytes()


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no tokenizer there"):
        read_tokenizer(tmp_path)
