"""Windows of a text by a model's own tokenizer: how they begin, and that a long text costs no more than a short one."""

import json
from pathlib import Path

import pytest
import torch
from tests.language_models import write_text, write_tiny_lm
from tokenizers import Tokenizer, processors

from subspacelab.data.text import read_texts
from subspacelab.models import text_windows as module
from subspacelab.models.text_windows import text_windows
from subspacelab.nullspace.verification import unseen_texts


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose tokenizer puts <unk> before a text and <eos> behind it; to be read only."""
    folder = write_tiny_lm(tmp_path_factory.mktemp("lm"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    around = [("<unk>", 2), ("<eos>", 1)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<unk> $A <eos>", special_tokens=around)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_every_window_begins_with_what_the_tokenizer_puts_before_a_text(lm: Path) -> None:
    found = text_windows(lm, ["ab" * 30, "cd" * 30], 7, 16, seed=1)
    assert found.prefix == ("<unk>",)
    assert found.input_ids.shape == (7, 16)
    assert (found.input_ids[:, 0] == 2).all()
    assert not (found.input_ids[:, 1:] == 2).any()
    assert (found.input_ids == 1).sum() <= 2, "an end stands after a document, not after a window"
    assert not found.shortage
    short = text_windows(lm, ["abc"], 7, 16, seed=1)
    assert short.input_ids.tolist() == [[2, 3, 4, 5, 1, *[0] * 11]]
    assert short.num_tokens == 5
    assert short.shortage == "the text has 4 tokens, 7 x 15 = 105 were asked for; 1 windows are taken"


def test_of_a_long_text_stretches_are_drawn_before_they_are_tokenised(
    lm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[str] = []
    original = module.encode
    monkeypatch.setattr(module, "encode", lambda t, texts: given.extend(texts) or original(t, texts))
    text = "".join(chr(ord("a") + i // 1000) for i in range(26_000))
    texts = [text[:50], text[50:20_000], text[20_000:]]
    first = text_windows(lm, texts, 10, 16, seed=1)
    assert sum(map(len, given)) == 10 * 8 * 16, "and not the whole text"
    assert all(part in text for part in given)
    assert len({*first.input_ids[:, 1].tolist()}) > 4, "from all over the text"
    assert torch.equal(first.input_ids, text_windows(lm, texts, 10, 16, seed=1).input_ids)
    assert not torch.equal(first.input_ids, text_windows(lm, texts, 10, 16, seed=2).input_ids)


def test_stretches_do_not_overlap_and_go_over_the_whole_text() -> None:
    texts = ["abcde", "", "fghijklmn", "o", "pqrstuvwxyz"]
    drawn = [["".join(part) for part in module._draw(texts, 8, 3, seed)] for seed in range(20)]
    assert all(len(set(parts)) == 4 and parts == sorted(parts) for parts in drawn)
    assert {part for parts in drawn for part in parts} == {"abcdef", "ghijkl", "mnopqr", "stuvwx", "yz"}
    assert list(module._draw(texts, 9, 3, 0)) == [texts]


def test_a_text_of_fewer_tokens_than_its_characters_say_is_read_on(lm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHARACTERS_PER_TOKEN", 1)  # two of four hundred stretches hold 32 tokens each
    found = text_windows(lm, ["ab" * 3200], 5, 16, seed=1)
    assert len(found.input_ids) == 5
    assert not found.shortage


def test_windows_beyond_the_positions_and_tokens_beyond_the_embedding_are_refused(tmp_path: Path) -> None:
    lm = write_tiny_lm(tmp_path, "opt")
    assert text_windows(lm, ["ab" * 300], 2, 128, seed=1).input_ids.shape == (2, 128)
    with pytest.raises(ValueError, match="129 tokens are more than the model has positions, 128: shorten `seq_len`"):
        text_windows(lm, ["ab" * 300], 2, 129, seed=1)
    config = json.loads((lm / "config.json").read_text())
    (lm / "config.json").write_text(json.dumps(config | {"vocab_size": 4}))
    with pytest.raises(ValueError, match=r"token 'b' \(4\) has no embedding"):
        text_windows(lm, ["ab" * 300], 2, 16, seed=1)


def test_a_verification_reads_what_no_calibration_reads_or_says_so(tmp_path: Path) -> None:
    path = write_text(tmp_path / "text.txt")
    seen, (unseen, note) = read_texts(str(path)), unseen_texts(str(path))
    assert note == ""
    assert "".join(seen + unseen) == path.read_text().replace("\n", "")
    (tmp_path / "folder").mkdir()
    path.rename(tmp_path / "folder" / "train.txt")
    again, note = unseen_texts(str(tmp_path / "folder"))
    assert again == read_texts(str(tmp_path / "folder"))
    assert "has no test part: calibration may have seen these tokens" in note
    with pytest.raises(ValueError, match="no such text"):
        unseen_texts("nothing")
