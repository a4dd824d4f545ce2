"""Responses read in batches behind a shared prefix, against every row alone; greedy answers against generation."""

import pytest
import torch
from tests.language_models import VOCABULARY, tiny_model
from torch import Tensor
from transformers import AutoModelForCausalLM, Lfm2Config

from subspacelab.models.fine_tuning import IGNORED, Example
from subspacelab.models.teacher_forcing import is_greedy, log_prob_of, num_shared, read_responses, response_of


def rows_of(shared: int, seed: int = 0) -> list[Example]:
    """Rows of other lengths of prompt and response behind `shared` tokens that are the same."""
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int) -> list[int]:
        return torch.randint(2, VOCABULARY, (count,), generator=generator).tolist()

    prefix, found = draw(shared), []
    for i, (prompt, response) in enumerate(((3, 2), (1, 5), (6, 1), (2, 2), (1, 1))):
        ids, said = [*prefix, i + 2, *draw(prompt - 1)], draw(response)
        found.append(Example([*ids, *said], [IGNORED] * len(ids) + said))
    return found


def alone(model: object, row: Example) -> Tensor:
    with torch.no_grad():
        logits = model(torch.tensor([row.input_ids])).logits[0]  # type: ignore[operator]
    start = len(row.labels) - len(response_of(row))
    return logits[start - 1 : -1].log_softmax(-1)


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "opt"])
@pytest.mark.parametrize("shared", [0, 1, 9])
def test_a_batch_behind_a_shared_prefix_reads_as_each_row_alone(family: str, shared: int) -> None:
    model, rows = tiny_model(family), rows_of(shared)
    found = dict(read_responses(model, rows, pad=0, batch_size=2))
    assert sorted(found) == list(range(len(rows)))
    for i, row in enumerate(rows):
        torch.testing.assert_close(found[i], alone(model, row), rtol=1e-4, atol=1e-4)


def test_a_model_with_linear_attention_reads_whole_prompts() -> None:
    attention = {"num_attention_heads": 4, "num_key_value_heads": 2, "layer_types": ["conv", "full_attention"]}
    config = Lfm2Config(vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, **attention)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
    rows = rows_of(9)
    found = dict(read_responses(model, rows, pad=0, batch_size=2))
    for i, row in enumerate(rows):
        torch.testing.assert_close(found[i], alone(model, row), rtol=1e-4, atol=1e-4)


def test_rows_that_share_their_whole_prompt_are_told_apart_by_their_responses() -> None:
    model = tiny_model()
    rows = [Example([5, 6, 7, a, b], [IGNORED] * 3 + [a, b]) for a, b in ((8, 9), (8, 10), (11, 9))]
    found = dict(read_responses(model, rows, pad=0, batch_size=4))
    for i, row in enumerate(rows):
        torch.testing.assert_close(found[i], alone(model, row), rtol=1e-4, atol=1e-4)
    ids = torch.tensor([8, 9])
    by_hand = float(found[0][0, 8] + found[0][1, 9])
    assert log_prob_of(found[0], ids) == pytest.approx(by_hand, rel=1e-6)


def test_a_response_is_greedy_if_generation_gives_it() -> None:
    model, prompts = tiny_model(), [[4, 9, 17], [5, 5], [6]]
    for prompt in prompts:
        given = model.generate(
            torch.tensor([prompt]),
            do_sample=False,
            max_new_tokens=4,
            min_new_tokens=4,
            pad_token_id=0,
            eos_token_id=None,
        )
        said = given[0, len(prompt) :].tolist()
        for wrong in (None, 0, 3):
            other = [(t + 1) % VOCABULARY if i == wrong else t for i, t in enumerate(said)]
            row = Example(prompt + other, [IGNORED] * len(prompt) + other)
            ((_, found),) = read_responses(model, [row], pad=0, batch_size=1)
            assert is_greedy(found, torch.tensor(other)) == (wrong is None)


def test_training_mode_is_left_as_it_was_even_if_reading_ends_early() -> None:
    model, rows = tiny_model(), rows_of(2)
    for mode in (True, False):
        model.train(mode)
        reading = read_responses(model, rows, pad=0, batch_size=1)
        next(reading)
        assert not model.training
        reading.close()
        assert model.training == mode


def test_of_nothing_nothing_is_read() -> None:
    assert list(read_responses(tiny_model(), [], pad=0, batch_size=2)) == []


def test_what_is_not_finite_is_named() -> None:
    model = tiny_model()
    with torch.no_grad():
        next(p for p in model.parameters() if p.ndim > 1).fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        list(read_responses(model, rows_of(0), pad=0, batch_size=2))


@pytest.mark.parametrize(
    ("rows", "count"),
    [([[1, 2, 3], [1, 2, 4], [1, 2]], 2), ([[1], [2]], 0), ([[7, 8]], 2), ([[1, 2], [1, 2]], 2), ([[], [1]], 0)],
)
def test_what_rows_begin_with(rows: list[list[int]], count: int) -> None:
    assert num_shared(rows) == count
