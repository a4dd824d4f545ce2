"""Prompts, responses and limits, by tokenizers that put different things around a text."""

import string
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import GPT2Config, LlamaConfig, MptConfig, OPTConfig, PreTrainedTokenizerFast, RobertaConfig

from subspacelab.models import tokens
from subspacelab.models.tokens import (
    encode,
    encode_prompts,
    encode_responses,
    max_positions,
    padding_id,
    prefix_of,
    require_readable,
)

BOS, EOS = 0, 1
CONFIG = LlamaConfig(vocab_size=300, max_position_embeddings=8)


def tokenizer_of(template: str | None = None, space: bool = False) -> Any:
    """A token for each character; `space` puts one before every text, as sentencepiece does."""
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", "▁", *string.printable])}
    built = Tokenizer(models.WordLevel(vocabulary))
    cut = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    built.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), cut]) if space else cut
    built.decoder = decoders.Fuse()
    if template:
        built.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[("<s>", BOS), ("</s>", EOS)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=built, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize(
    ("template", "prefix"),
    [(None, []), ("<s> $A", [BOS]), ("$A </s>", []), ("<s> $A </s>", [BOS]), ("<s> <s> $A", [BOS, BOS])],
)
def test_a_prompt_begins_as_the_tokenizer_makes_it_and_has_no_end_in_its_midst(
    template: str | None, prefix: list[int]
) -> None:
    tokenizer = tokenizer_of(template)
    assert prefix_of(tokenizer, "why?") == prefix
    (plain,) = encode(tokenizer, ["why?"])
    assert encode_prompts(tokenizer, ["why?", ""]) == [prefix + plain, prefix]
    assert tokenizer.decode(plain) == "why?"


@pytest.mark.parametrize("first", ["", "<s>", "<s><s>", "</s>", "why?"])
def test_the_prefix_does_not_depend_on_the_text_that_it_is_seen_on(first: str) -> None:
    assert prefix_of(tokenizer_of("<s> $A </s>"), first) == [BOS]
    assert prefix_of(tokenizer_of("$A </s>"), first) == prefix_of(tokenizer_of(), first) == []


def test_a_response_is_encoded_where_it_stands_and_not_as_a_text_of_its_own() -> None:
    tokenizer = tokenizer_of("<s> $A", space=True)
    assert tokenizer.convert_ids_to_tokens(encode(tokenizer, ["ab"])[0]) == ["▁", "a", "b"]
    assert tokenizer.convert_ids_to_tokens(encode_responses(tokenizer, ["why?\n"], ["ab"], 9)[0]) == ["a", "b"]


def test_a_long_text_is_given_in_parts_and_none_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tokenizer_of("<s> $A </s>")
    texts = [string.ascii_letters * 3, "", "x", string.digits * 5]
    whole = encode(tokenizer, texts)
    monkeypatch.setattr(tokens, "PART", 7)
    monkeypatch.setattr(tokens, "BATCH", 3)
    assert encode(tokenizer, texts) == whole
    assert [len(ids) for ids in whole] == [len(text) for text in texts]
    enough = encode(tokenizer, [*texts, "y" * 99], 20)  # 20 tokens are 3 parts of 7, and they come by 3
    assert [len(ids) for ids in enough] == [21, 0, 1, 21, 28]
    assert all(ids == all_of_it[: len(ids)] for ids, all_of_it in zip(enough, whole, strict=False))


def test_positions_are_those_that_a_text_can_have() -> None:
    assert max_positions(CONFIG) == 8
    assert max_positions(GPT2Config(n_positions=32)) == 32
    assert max_positions(MptConfig(max_seq_len=16)) == 16
    assert max_positions(OPTConfig(max_position_embeddings=16)) == 16
    # RoBERTa counts from the padding's id + 1 on: 514 rows for 512 tokens.
    assert max_positions(RobertaConfig(max_position_embeddings=514, pad_token_id=1)) == 512


def test_what_the_model_has_no_room_or_no_embedding_for_is_named() -> None:
    tokenizer = tokenizer_of()
    require_readable(CONFIG, tokenizer, [[3] * 8, []], remedy="x")
    with pytest.raises(ValueError, match="9 tokens are more than the model has positions, 8: shorten `seq_len`"):
        require_readable(CONFIG, tokenizer, [[3], [3] * 9], remedy="shorten `seq_len`")
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    config = LlamaConfig(vocab_size=len(tokenizer) - 1)
    with pytest.raises(ValueError, match=r"token '<pad>' \(103\) has no embedding, the model has 103: take it out"):
        require_readable(config, tokenizer, encode(tokenizer, ["a", "a<pad>"]), remedy="x")


def test_a_batch_is_filled_with_padding_or_else_the_end_token_or_else_token_0() -> None:
    tokenizer = tokenizer_of()
    assert padding_id(CONFIG, tokenizer) == EOS
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    assert padding_id(CONFIG, tokenizer) == tokenizer.pad_token_id
    assert padding_id(LlamaConfig(vocab_size=len(tokenizer) - 1), tokenizer) == EOS, "beyond the embedding"
    tokenizer.eos_token = tokenizer.pad_token = None
    assert padding_id(CONFIG, tokenizer) == 0
