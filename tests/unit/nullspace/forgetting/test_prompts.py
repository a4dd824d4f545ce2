"""Prompts, responses and their end, with a chat template and without."""

import pytest
from tests.unit.nullspace.forgetting.chat_model import byte_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from subspacelab.data.instructions import Instruction, prompt_of
from subspacelab.models.fine_tuning import IGNORED
from subspacelab.nullspace.forgetting.prompts import (
    continues_word,
    encode_example,
    end_token,
    prompt_ids,
    prompt_text,
    response_ids,
)

ROW = Instruction("What is 1 + 2?", "03 0 3")


def test_a_row_is_the_conversation_that_the_template_writes() -> None:
    tokenizer = byte_tokenizer()
    turns = [{"role": "user", "content": ROW.query}, {"role": "assistant", "content": ROW.response}]
    whole = tokenizer(tokenizer.apply_chat_template(turns, tokenize=False))["input_ids"]
    example = encode_example(tokenizer, ROW, 200)
    assert example is not None
    assert example.input_ids == whole[:-1], "all but the line break behind the last turn"
    assert tokenizer.decode(example.input_ids[-1]) == "<end>"


@pytest.mark.parametrize("chat", [True, False])
def test_the_loss_is_on_response_and_end_alone(chat: bool) -> None:
    tokenizer = byte_tokenizer(chat)
    example = encode_example(tokenizer, ROW, 200)
    assert example is not None
    said = [i for i in example.labels if i != IGNORED]
    assert tokenizer.decode(said) == ROW.response + ("<end>" if chat else "<eos>")
    prompt = prompt_ids(tokenizer, ROW.query)
    assert example.input_ids == prompt + said
    assert example.labels == [IGNORED] * len(prompt) + said
    assert tokenizer.decode(prompt) == prompt_text(tokenizer, ROW.query)


def test_without_a_template_the_prompt_is_that_of_all_studies() -> None:
    tokenizer = byte_tokenizer(chat=False)
    assert prompt_text(tokenizer, "who?") == prompt_of("who?")
    assert end_token(tokenizer) == tokenizer.eos_token_id


def test_what_a_tokenizer_puts_before_a_text_stands_before_a_plain_prompt_only() -> None:
    for chat in (True, False):
        tokenizer = byte_tokenizer(chat)
        before = prompt_ids(tokenizer, "who?", "It is")
        begin = [("<eos>", tokenizer.eos_token_id)]
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<eos> $A", pair="<eos> $A $B", special_tokens=begin
        )
        assert prompt_ids(tokenizer, "who?", "It is") == ([] if chat else [tokenizer.eos_token_id]) + before
        assert tokenizer.decode(response_ids(tokenizer, "who?", " me.", "It is")) == " me."


def test_a_lead_belongs_to_the_prompt() -> None:
    tokenizer = byte_tokenizer()
    ids = prompt_ids(tokenizer, "who?", "It is") + response_ids(tokenizer, "who?", " me.", "It is")
    assert tokenizer.decode(ids) == prompt_text(tokenizer, "who?") + "It is me."


def test_a_row_is_cut_and_one_without_a_response_is_none() -> None:
    tokenizer = byte_tokenizer()
    prompt = prompt_ids(tokenizer, ROW.query)
    cut = encode_example(tokenizer, ROW, len(prompt) + 2)
    assert cut is not None
    assert tokenizer.decode(cut.input_ids[len(prompt) :]) == ROW.response[:2]
    assert encode_example(tokenizer, ROW, len(prompt)) is None


def test_a_template_that_ends_no_turn_leaves_the_tokenizers_end() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] + '\n' }}{% endfor %}"
    assert end_token(tokenizer) == tokenizer.eos_token_id


def test_a_word_goes_on_with_letters_digits_and_hyphens() -> None:
    tokenizer = byte_tokenizer()
    found = continues_word(tokenizer, 300)
    ids = {c: tokenizer.encode(c, add_special_tokens=False)[0] for c in "aZ7- .,\n"}
    assert {c for c, i in ids.items() if found[i]} == set("aZ7-")
    assert not found[:4].any(), "special tokens end a word"
    assert not found[len(tokenizer) :].any(), "so do embeddings without a token"


def test_a_tokenizer_that_writes_spaces_as_a_mark_is_read_alike() -> None:
    vocabulary = {token: i for i, token in enumerate(["<unk>", ".", "ing", "\u2581sing", "\u2581"])}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    plain.pre_tokenizer, plain.decoder = pre_tokenizers.Metaspace(prepend_scheme="never"), decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>")
    assert continues_word(tokenizer, 5).tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("template", ["{{ raise_exception('no\\nway') }}", "{% for %}"])
def test_a_template_that_fails_is_named_in_one_line(template: str) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(ValueError, match="its chat template takes no plain question") as found:
        prompt_text(tokenizer, "who?")
    assert "\n" not in str(found.value)
