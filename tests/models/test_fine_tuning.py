"""Rows as the Trainer gets them, and which checkpoint is taken up."""

from pathlib import Path

import pytest
import torch
from tests.language_models import tiny_model

from subspacelab.models.fine_tuning import (
    IGNORED,
    STATE,
    Example,
    collate,
    encode_example,
    newest_checkpoint,
    num_steps,
)


def test_the_loss_lies_on_the_response_and_its_end_alone() -> None:
    example = encode_example([5, 6, 7], [8, 9], 1, 10)
    assert example == Example([5, 6, 7, 8, 9, 1], [IGNORED] * 3 + [8, 9, 1])
    assert encode_example([5, 6, 7], [8, 9], None, 10) == Example([5, 6, 7, 8, 9], [IGNORED] * 3 + [8, 9])


def test_a_long_row_is_cut_and_one_without_a_response_left_is_none() -> None:
    assert encode_example([5, 6, 7], [8, 9], 1, 4) == Example([5, 6, 7, 8], [IGNORED] * 3 + [8])
    assert encode_example([5, 6, 7], [8, 9], 1, 3) is None
    assert encode_example([5, 6, 7], [8, 9], 1, 2) is None


def test_padding_has_neither_attention_nor_loss() -> None:
    batch = collate([Example([5, 6, 8], [IGNORED, IGNORED, 8]), Example([5], [5])], pad=0)
    assert batch.input_ids.tolist() == [[5, 6, 8], [5, 0, 0]]
    assert batch.attention_mask.tolist() == [[True, True, True], [True, False, False]]
    assert batch.labels.tolist() == [[IGNORED, IGNORED, 8], [5, IGNORED, IGNORED]]


def test_what_pads_does_not_change_the_loss() -> None:
    model = tiny_model()
    rows = [encode_example([5, 6, 7], [8, 9, 10, 11], 1, 20), encode_example([12], [13], 1, 20)]
    examples = [row for row in rows if row is not None]
    with torch.no_grad():
        losses = [model(**vars(collate(examples, pad=pad))).loss.item() for pad in (0, 9)]
        apart = [model(**vars(collate([e], pad=0))).loss.item() for e in examples]
    assert losses[0] == losses[1]
    assert losses[0] == pytest.approx((5 * apart[0] + 2 * apart[1]) / 7, rel=1e-5)


@pytest.mark.parametrize(
    ("rows", "how", "epochs", "steps"),
    [(10, (4, 1), 1, 3), (10, (4, 2), 1, 2), (10, (4, 2), 3, 6), (8, (4, 1), 0.5, 1), (1, (8, 8), 1, 1)],
)
def test_steps_of_so_many_passes(rows: int, how: tuple[int, int], epochs: float, steps: int) -> None:
    assert num_steps(rows, how, epochs) == steps


def test_the_newest_whole_checkpoint_is_taken_and_halves_of_later_ones_go(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    for step, state in ((9, "{}"), (20, '{"global_step": 20}'), (100, '{"global_'), (101, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state is not None:
            (folder / STATE).write_text(state)
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-20"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-20", "checkpoint-9"]
