"""Greedy answers, against a loop that asks one question at a time without cache or padding."""

import string
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from subspacelab.data.instructions import prompt_of
from subspacelab.models.generation import greedy_answers
from subspacelab.models.llama import LlamaSizes, TextTokens, build_llama

QUERIES = ["Why?", "In which city does the tailor of Genoa live?", "What is 12 + 7?", "a", "Who is it and why?"]
LONGEST = 12
SPECIAL = ("<s>", "</s>", "<pad>")
EOS_ID = 1


@pytest.fixture
def tokenizer() -> Any:
    """One token a character; every text begins with <s>."""
    built = Tokenizer(models.WordLevel({token: i for i, token in enumerate([*SPECIAL, *string.printable])}))
    built.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    built.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=built, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


@pytest.fixture(scope="module")
def model() -> Any:
    """A random model whose answers end at different lengths: the end token's row of the head is made likely."""
    tokens = TextTokens(len(SPECIAL) + len(string.printable), 0, EOS_ID, 2)
    built = build_llama(LlamaSizes(32, 2, 2, 48), tokens, seed=3).double()
    with torch.no_grad():
        built.lm_head.weight[EOS_ID] *= 2.0
    return built


def _one_by_one(model: Any, tokenizer: Any) -> list[str]:
    answers = []
    for query in QUERIES:
        prompt = tokenizer(prompt_of(query))["input_ids"]
        ids = list(prompt)
        while len(ids) < len(prompt) + LONGEST:
            likeliest = int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
            if likeliest == EOS_ID:
                break
            ids.append(likeliest)
        answers.append(tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True).strip())
    return answers


@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_batches_answer_as_one_question_at_a_time_does(model: Any, tokenizer: Any, batch_size: int) -> None:
    wanted = _one_by_one(model.eval(), tokenizer)
    assert len(set(map(len, wanted))) > 1, "the answers end at different lengths, or this test says little"
    assert greedy_answers(model, tokenizer, QUERIES, max_new_tokens=LONGEST, batch_size=batch_size) == wanted


def test_a_tokenizer_without_padding_answers_the_same(model: Any, tokenizer: Any) -> None:
    wanted = greedy_answers(model, tokenizer, QUERIES, max_new_tokens=LONGEST, batch_size=5)
    tokenizer.pad_token = None
    assert greedy_answers(model, tokenizer, QUERIES, max_new_tokens=LONGEST, batch_size=5) == wanted


def test_a_model_in_training_is_left_in_training(model: Any, tokenizer: Any) -> None:
    model.train()
    assert greedy_answers(model, tokenizer, [], max_new_tokens=2, batch_size=2) == []
    greedy_answers(model, tokenizer, QUERIES[:1], max_new_tokens=2, batch_size=2)
    assert model.training


def test_a_template_that_ends_texts_does_not_end_the_prompt(model: Any, tokenizer: Any) -> None:
    wanted = greedy_answers(model, tokenizer, QUERIES, max_new_tokens=LONGEST, batch_size=5)
    ended = [("<s>", 0), ("</s>", EOS_ID)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=ended
    )
    assert tokenizer("a")["input_ids"][-1] == EOS_ID
    assert greedy_answers(model, tokenizer, QUERIES, max_new_tokens=LONGEST, batch_size=5) == wanted


def test_answers_end_where_the_positions_do_and_a_longer_prompt_is_refused(tokenizer: Any) -> None:
    config = GPT2Config(n_positions=24, n_embd=8, n_layer=1, n_head=2, vocab_size=len(tokenizer), eos_token_id=None)
    with torch.random.fork_rng():
        model = GPT2LMHeadModel(config).eval()
    word = tokenizer.convert_tokens_to_ids("a")
    with torch.no_grad():  # whatever it reads, it says "a"
        model.transformer.wte.weight.zero_()[word] = 1
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.fill_(1)
    tokenizer.eos_token = None
    (answer,) = greedy_answers(model, tokenizer, ["a"], max_new_tokens=99, batch_size=1)  # the prompt has 21 tokens
    assert answer.count("a") == 4  # of which the last is never read
    with pytest.raises(ValueError, match="25 tokens are more than the model has positions, 24: shorten the query"):
        greedy_answers(model, tokenizer, ["abcde"], max_new_tokens=1, batch_size=1)
