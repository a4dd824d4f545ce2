"""Exact answers and ranks: known by hand of a bigram model, and by asking a Llama about every answer alone."""

import pytest
import torch
from tests.unit.nullspace.forgetting.chat_model import PROBES, Bigram, byte_tokenizer, tiny_llama, tiny_materials

from subspacelab.nullspace.forgetting.probes import Probe
from subspacelab.nullspace.forgetting.prompts import prompt_ids, response_ids
from subspacelab.nullspace.forgetting.recall import answer_probes


def test_exact_and_rank_of_a_model_whose_probabilities_are_known() -> None:
    tokenizer = byte_tokenizer()
    probes = [Probe("letter", f"Which? {i}", f"{i} is", answer) for i, answer in enumerate("ABCDE")]
    materials = tiny_materials(tokenizer, tiny_llama().config, probes=probes)
    space, point = (tokenizer.encode(c, add_special_tokens=False)[0] for c in " .")
    letters = {c: tokenizer.encode(c, add_special_tokens=False)[0] for c in "ABCDEs"}
    logits = torch.zeros(260, 260)
    logits[letters["s"], space] = 9.0  # what follows `is`
    for c, height in zip("ABCDE", (5.0, 4.0, 3.0, 3.0, 1.0), strict=True):
        logits[space, letters[c]] = height
        logits[letters[c], point] = 9.0
    found = answer_probes(Bigram(logits), materials, range(5), batch_size=2)
    assert [a.exact for a in found] == [True, False, False, False, False]
    assert [a.rank_score for a in found] == pytest.approx([1, 0.75, 0.5, 0.5, 0])  # two are equally likely

    logits[letters["A"], point], logits[letters["A"], space] = 0.0, 9.0  # A is no longer followed by a point
    first, *_ = answer_probes(Bigram(logits), materials, range(5), batch_size=2)
    assert first.exact, "the word ends all the same"
    assert first.rank_score == 0, "log p(A) + log p(point | A) is the smallest now"
    logits[letters["A"], letters["s"]] = 10.0
    first, *_ = answer_probes(Bigram(logits), materials, range(5), batch_size=2)
    assert not first.exact, "As is another word"


def test_ranks_are_those_of_asking_about_every_answer() -> None:
    tokenizer, model = byte_tokenizer(), tiny_llama(seed=1)
    materials = tiny_materials(tokenizer, model.config)
    found = answer_probes(model, materials, range(len(PROBES)), batch_size=3)
    for probe, answered in zip(PROBES, found, strict=True):
        answers = sorted({p.answer for p in PROBES if p.kind == probe.kind})
        log_probs = {}
        for answer in answers:
            prompt = prompt_ids(tokenizer, probe.question, probe.lead)
            said = response_ids(tokenizer, probe.question, f" {answer}.", probe.lead)
            with torch.no_grad():
                scores = model(torch.tensor([prompt + said])).logits[0].log_softmax(-1)
            log_probs[answer] = sum(float(scores[len(prompt) - 1 + i, token]) for i, token in enumerate(said))
        ahead = sum(value > log_probs[probe.answer] for value in log_probs.values())
        assert answered.rank_score == pytest.approx(1 - ahead / (len(answers) - 1))


def test_only_the_probes_named_are_asked_and_seen_in_their_order() -> None:
    tokenizer, model = byte_tokenizer(), tiny_llama()
    materials = tiny_materials(tokenizer, model.config)
    seen: dict[int, int] = {}
    places = [4, 0, 3]
    found = answer_probes(model, materials, places, batch_size=2, see=lambda i, lp: seen.update({i: len(lp)}))
    assert seen == {i: len(f" {PROBES[place].answer}.") for i, place in enumerate(places)}
    whole = answer_probes(model, materials, range(len(PROBES)), batch_size=2)
    assert [f.rank_score for f in found] == [whole[place].rank_score for place in places]


def test_a_kind_with_one_answer_is_always_ranked_first() -> None:
    model = tiny_llama()
    materials = tiny_materials(byte_tokenizer(), model.config, probes=[Probe("one", "Who?", "It is", "me")])
    (found,) = answer_probes(model, materials, [0], batch_size=2)
    assert found.rank_score == 1
