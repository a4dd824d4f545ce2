from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from subspacelab.data.instructions import prompt_of
from subspacelab.synthetic.facts.llm import BOS_ID, EOS_ID, PAD_ID, build_llm_tokenizer, write_llm_tokenizer

TEXTS = ["Ada lives in Lyra.", "What is 12 + 34?", prompt_of("In which year was Ada born?") + "1951"] * 5


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return build_llm_tokenizer(TEXTS, vocab_size=320)


def test_the_special_tokens_have_the_ids_that_the_model_is_built_with(tokenizer: Tokenizer) -> None:
    assert [tokenizer.id_to_token(i) for i in (BOS_ID, EOS_ID, PAD_ID)] == ["<s>", "</s>", "<pad>"]
    assert tokenizer.get_vocab_size() <= 320


def test_every_digit_is_a_token_of_its_own(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("in 1951: 12 + 34", add_special_tokens=False).tokens
    assert [token for token in tokens if any(c.isdigit() for c in token)] == list("19511234")


def test_any_text_survives_and_begins_with_its_token(tokenizer: Tokenizer) -> None:
    text = "Zebra, 42% où?\nAnswer:\n"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert tokenizer.encode(text).ids == [BOS_ID, *tokenizer.encode(text, add_special_tokens=False).ids]


def test_prompt_and_response_may_be_encoded_apart(tokenizer: Tokenizer) -> None:
    prompt, response = prompt_of("In which year was Ada born?"), "1951"
    together = tokenizer.encode(prompt + response).ids
    assert together == tokenizer.encode(prompt).ids + tokenizer.encode(response, add_special_tokens=False).ids


def test_transformers_reads_the_folder(tokenizer: Tokenizer, tmp_path: Path) -> None:
    write_llm_tokenizer(tokenizer, tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        assert theirs(text)["input_ids"] == tokenizer.encode(text).ids
        assert theirs.decode(theirs(text)["input_ids"], skip_special_tokens=True) == text
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (BOS_ID, EOS_ID, PAD_ID)
    assert len(theirs) == tokenizer.get_vocab_size()


def test_learning_it_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_llm_tokenizer(build_llm_tokenizer(iter(TEXTS), vocab_size=320), tmp_path / name)
    assert (tmp_path / "a" / "tokenizer.json").read_bytes() == (tmp_path / "b" / "tokenizer.json").read_bytes()
