import pytest
import torch

from subspacelab.data.windows import token_windows

DOCUMENTS = [list(range(100 * i, 100 * i + length)) for i, length in enumerate((5, 0, 9, 4, 7), start=1)]
JOINED = [token for document in DOCUMENTS if document for token in [*document, -1]]


def test_windows_are_stretches_of_the_joined_text_that_do_not_overlap() -> None:
    windows = token_windows(DOCUMENTS, num_windows=4, seq_len=7, seed=3, separator=-1)
    stretches = [JOINED[i : i + 7] for i in range(0, 28, 7)]
    assert sorted(windows.input_ids.tolist()) == sorted(stretches)
    assert windows.attention_mask.all()
    assert windows.shortage == ""
    assert windows.num_tokens == 28


def test_the_seed_draws_which_windows_and_their_order() -> None:
    many = [list(range(400))]
    drawn = [token_windows(many, num_windows=10, seq_len=8, seed=seed, separator=None).input_ids for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert len(set(drawn[0][:, 0].tolist())) == 10
    assert drawn[0][:, 0].max() > 80, "not only the text's beginning"


def test_without_a_separator_nothing_stands_between_documents() -> None:
    windows = token_windows([[1, 2], [3, 4]], num_windows=1, seq_len=4, seed=0, separator=None)
    assert windows.input_ids.tolist() == [[1, 2, 3, 4]]


def test_too_short_a_text_gives_fewer_windows_and_says_so() -> None:
    windows = token_windows(DOCUMENTS, num_windows=5, seq_len=10, seed=0, separator=-1)
    assert windows.input_ids.shape == (2, 10)
    assert windows.shortage == "the text has 29 tokens, 5 x 10 = 50 were asked for; 2 windows are taken"


def test_less_than_one_window_is_padded_and_masked() -> None:
    windows = token_windows([[7, 8, 9]], num_windows=2, seq_len=5, seed=0, separator=1)
    assert windows.input_ids.tolist() == [[7, 8, 9, 1, 0]]
    assert windows.attention_mask.tolist() == [[True, True, True, True, False]]
    assert windows.num_tokens == 4
    assert "4 tokens" in windows.shortage


def test_sizes_below_one_and_no_text_are_refused() -> None:
    with pytest.raises(ValueError, match="seq_len: 0 must be at least 1"):
        token_windows(DOCUMENTS, num_windows=1, seq_len=0, seed=0, separator=None)
    with pytest.raises(ValueError, match="no token in the text"):
        token_windows([[], []], num_windows=1, seq_len=4, seed=0, separator=1)
