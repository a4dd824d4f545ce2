"""One training with scores on the way: what a kill costs, what the loss is, and in which order rows come."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.language_models import FAMILIES, write_tiny_lm
from tests.unit.nullspace.forgetting.curves import known
from tests.unit.nullspace.trainings import Killed, kill_at

from subspacelab.models.fine_tuning import IGNORED, Example, collate
from subspacelab.models.teacher_forcing import response_logits
from subspacelab.models.trainables import Base, Trainable, by_peft, whole
from subspacelab.nullspace.forgetting import curve as curves
from subspacelab.nullspace.forgetting.curve import Course, Curve, Setup, train_curve
from subspacelab.nullspace.forgetting.scores import Scores
from subspacelab.training import fit

COURSE = Course(steps=8, batch_size=4, warmup_ratio=0.1, kl_weight=0.5)
ROWS = [Example([3 + i, 4, 5 + j, 9, 1], [IGNORED, IGNORED, 5 + j, 9, 1]) for i in range(5) for j in range(2)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return Base(write_tiny_lm(tmp_path_factory.mktemp("lm")), torch.float32, torch.device("cpu"))


def lora(base: Base) -> Trainable:
    from peft import LoraConfig

    return by_peft(base, lambda targets: LoraConfig(r=4, lora_alpha=4, target_modules=targets), seed=1)


def seen(model: Any) -> Scores:
    """Scores that tell one model from another."""
    return known(float(sum(p.double().abs().sum() for p in model.parameters())), 0.5)


def setup_of(base: Base, **changes: Any) -> Setup:
    return replace(Setup(lambda: whole(base), ROWS, pad=0, score=seen), **changes)


def run(folder: Path, setup: Setup, **given: Any) -> Curve:
    return train_curve(Curve("full", 1e-2, 7, 0, []), setup, COURSE, folder, **given)


def test_it_is_scored_at_an_eighth_a_quarter_a_half_and_the_end(base: Base, tmp_path: Path) -> None:
    found = run(tmp_path, setup_of(base))
    assert [point.step for point in found.points] == [1, 2, 4, 8]
    assert found.num_parameters == sum(p.numel() for p in whole(base).parameters.values())
    assert len({point.scores.task for point in found.points}) == 4
    assert not (tmp_path / "snapshot").exists()


@pytest.mark.parametrize("step", [3, 5, 8])
def test_a_killed_training_goes_on_to_the_same_bytes_and_scores_no_point_twice(
    base: Base, tmp_path: Path, step: int
) -> None:
    unbroken = run(tmp_path / "unbroken", setup_of(base))
    scored: list[int] = []

    def counting(model: Any) -> Scores:
        scored.append(1)
        return seen(model)

    setup = setup_of(base, score=counting)
    with pytest.raises(Killed):
        run(tmp_path / "killed", setup, log=kill_at(step))
    assert run(tmp_path / "killed", setup) == unbroken
    paths = [tmp_path / name / curves.CURVE for name in ("unbroken", "killed")]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert len(scored) == 4
    assert run(tmp_path / "killed", setup_of(base, made=_not_again)) == unbroken


def _not_again() -> Trainable:
    raise AssertionError("a finished training is read, not made again")


def test_a_training_killed_while_it_is_scored_goes_on(base: Base, tmp_path: Path) -> None:
    def killed_at_half(model: Any) -> Scores:
        if len(list(tmp_path.rglob("curve.json"))) and '"step": 2' in (tmp_path / "killed/curve.json").read_text():
            raise Killed
        return seen(model)

    with pytest.raises(Killed):
        run(tmp_path / "killed", setup_of(base, score=killed_at_half))
    assert run(tmp_path / "killed", setup_of(base)) == run(tmp_path / "unbroken", setup_of(base))


def test_a_point_that_was_written_before_the_kill_is_not_scored_again(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[int] = []

    def counting(model: Any) -> Scores:
        scored.append(1)
        return seen(model)

    def killed(*args: Any, **kwargs: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(fit, "write_snapshot", killed)  # the point of step 1 stands, the state of the training does not
        run(tmp_path / "killed", setup_of(base, score=counting))
    assert run(tmp_path / "killed", setup_of(base, score=counting)) == run(tmp_path / "unbroken", setup_of(base))
    assert len(scored) == 4


def test_each_step_reads_its_own_rows(base: Base, tmp_path: Path) -> None:
    read: list[int] = []

    class Rows(list):
        def __getitem__(self, i: Any) -> Any:
            read.append(i)
            return super().__getitem__(i)

    run(tmp_path, setup_of(base, examples=Rows(ROWS)))
    assert read == [row for step in curves._order(len(ROWS), COURSE, 7) for row in step]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shared", [0, 2])
def test_the_loss_is_the_cross_entropy_of_the_responses_tokens(tmp_path: Path, family: str, shared: int) -> None:
    # What rows begin with alike passes the model once: loss and gradients are those of the plain pass.
    first, others = [20, 21][:shared], [IGNORED] * shared
    rows = [([3, 4, 5, 9, 1], [5, 9, 1]), ([6, 4, 5, 6, 7, 1], [7, 1]), ([8, 9], [9])]
    examples = [Example(first + ids, others + [IGNORED] * (len(ids) - len(r)) + r) for ids, r in rows]
    batch = collate(examples, 0)
    folder, losses, gradients = write_tiny_lm(tmp_path, family), [], []
    for plain in (False, True):
        trainable = whole(Base(folder, torch.float32, torch.device("cpu")))
        if plain:
            given = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask.long()}
            loss = trainable.model(**given, labels=batch.labels).loss
        else:
            logits, targets = response_logits(trainable.model, batch)
            assert targets.tolist() == [5, 9, 1, 7, 1, 9]
            loss = torch.nn.functional.cross_entropy(logits, targets)
        loss.backward()
        losses.append(loss.detach())
        gradients.append([p.grad for p in trainable.parameters.values()])
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-4)


def test_the_penalty_is_the_divergence_from_the_base(base: Base) -> None:
    trainable, batch = lora(base), collate(ROWS[:4], 0)
    loss, parts = curves._loss(trainable, batch, 0.5)
    assert abs(float(parts["kl"])) < 1e-6  # B = 0: the model is the base
    with torch.no_grad():
        for parameter in trainable.parameters.values():
            parameter.add_(0.1)
    loss, parts = curves._loss(trainable, batch, 0.5)
    torch.testing.assert_close(loss, parts["cross_entropy"] + 0.5 * parts["kl"])
    before, after = (response_logits(m, batch)[0].log_softmax(-1) for m in (base.load(), trainable.model))
    torch.testing.assert_close(parts["kl"], (before.exp() * (before - after)).sum(-1).mean())
    loss.backward()
    assert all(p.grad is not None for p in trainable.parameters.values())


def test_every_row_comes_once_before_any_comes_again() -> None:
    order = curves._order(10, replace(COURSE, steps=5), seed=3)
    flat = [row for step in order for row in step]
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))
    assert order != curves._order(10, replace(COURSE, steps=5), seed=4)
