"""What a model knows: the counting, the table, and models of which the answers are known."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.unit.nullspace.trainings import train_tiny, write_adapter_of, write_base

from subspacelab.data.instructions import Instruction, write_instructions
from subspacelab.models.causal_lm import load_causal_lm
from subspacelab.nullspace import knowledge
from subspacelab.nullspace.config import KnowledgeSettings
from subspacelab.nullspace.knowledge import last_word, measure_knowledge, relative_change, update_norm

METHODS = ("lora_null_v2", "lora_null_v1")
CPU = torch.device("cpu")
FACTS = [Instruction(f"who{i}", answer) for i, answer in enumerate(("Anna", "Bert", "Cara", "Dora"))]
TASK = [Instruction("sum1", "1+1=2 so 2"), Instruction("sum2", "2+2=4 so 4")]
VALIDATION = [Instruction("sum3", "1+2=3 so 3")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, two adapters as built, facts and problems; to be read only."""
    folder = write_base(tmp_path_factory.mktemp("knowledge"))
    for method in METHODS:
        write_adapter_of(folder, folder / method, method)
    write_instructions(folder / "facts.jsonl", FACTS)
    write_instructions(folder / "task.jsonl", TASK)
    write_instructions(folder / "validation.jsonl", VALIDATION)
    return folder


@pytest.fixture(scope="module")
def trained(place: Path) -> Path:
    """The same place, with `<method>-out/ft`, each trained."""
    for method in METHODS:
        train_tiny(place / method, place / f"{method}-out")
    return place


def settings_of(place: Path, **changes: Any) -> KnowledgeSettings:
    files = (str(place / name) for name in ("facts.jsonl", "task.jsonl", "validation.jsonl", "text.txt"))
    return replace(KnowledgeSettings(*files, num_windows=3, seq_len=16, batch_size=2), **changes)


def answering(monkeypatch: pytest.MonkeyPatch, answers: dict[str, str]) -> list[int]:
    """Puts fixed answers in the place of generation; returns the lengths that were asked for."""
    asked: list[int] = []

    def greedy(model: Any, tokenizer: Any, queries: list[str], *, max_new_tokens: int, batch_size: int) -> list[str]:
        asked.append(max_new_tokens)
        return [answers[q] for q in queries]

    monkeypatch.setattr(knowledge, "greedy_answers", greedy)
    return asked


def test_exact_begun_and_solved_are_told_apart(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"who0": " Anna ", "who1": "Bert and so on", "who2": "Carl", "who3": ""}
    answers |= {"sum1": "what is 2", "sum2": "2+2=4 so 5", "sum3": "3"}
    asked = answering(monkeypatch, answers)
    base, (one,) = measure_knowledge([place / "lora_null_v2"], settings_of(place), seed=1, device=CPU)
    assert (one.recall, one.recall_begun, one.task, one.validation) == (0.25, 0.5, 0.5, 1.0)
    assert one.geometric_mean == pytest.approx(math.sqrt(0.25 * 0.5))
    assert (base.recall, base.drift, base.update_norm) == (0.25, 0.0, 0.0)
    # Characters are tokens: one more than the longest response, which is enough to see that an answer goes on.
    assert asked == [5, 11, 11, 5, 11, 11]
    assert (one.recall_calibrated, one.recall_uncalibrated) == (None, 0.25), "no text asks a question"


def test_facts_whose_questions_are_in_the_calibration_text_are_counted_apart(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["Question: who0\nAnswer:\nAnna", "Question: who3\nAnswer:\nDora", "who1 is Bert, who2 is Cara"]
    (tmp_path / "text.txt").write_text("\n\n".join([*texts, *["ab" * 20] * 5]))
    answers = {"who0": "Anna", "who1": "Bert", "who2": "Cara.", "who3": "?", "sum1": "2", "sum2": "4", "sum3": "3"}
    answering(monkeypatch, answers)
    settings = settings_of(place, text=str(tmp_path / "text.txt"))
    _, (one,) = measure_knowledge([place / "lora_null_v2"], settings, seed=1, device=CPU)
    assert (one.recall_calibrated, one.recall_begun_calibrated) == (0.5, 0.5)
    assert (one.recall_uncalibrated, one.recall_begun_uncalibrated) == (0.5, 1.0)
    assert (one.recall, one.recall_begun) == (0.5, 0.75)


def test_answers_are_no_longer_than_allowed_and_only_the_first_are_asked(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = answering(monkeypatch, {"who0": "Anna", "sum1": "2", "sum3": "3"})
    base, _ = measure_knowledge(
        [place / "lora_null_v2"], settings_of(place, limit=1, max_new_tokens=3), seed=1, device=CPU
    )
    assert (base.recall, base.task) == (1.0, 1.0)
    assert set(asked) == {3}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_drift_and_norm_are_nothing_before_training_and_something_after(trained: Path, method: str) -> None:
    folders = [trained / method, trained / f"{method}-out" / "ft"]
    base, (built, now) = measure_knowledge(folders, settings_of(trained), seed=1, device=CPU)
    if method == "lora_null_v2":
        assert replace(built, update_norm=0.0) == base
        assert built.update_norm == 0
    else:  # W - A_0 B_0 + A_0 B_0, in float32; plain PEFT adds [A, -A_0] [B; B_0] to W, each of which rounds
        assert built.drift < 1e-5
        assert built.update_norm < 1e-4
    assert now.drift > 0.01
    assert now.update_norm > 0.1
    assert all(0 <= v <= 1 for v in (base.recall, base.task, now.recall, now.task))


@pytest.mark.slow
def test_the_norm_is_that_of_all_products_together(trained: Path) -> None:
    folder = trained / "lora_null_v1-out" / "ft"
    tensors = load_file(folder / "adapter_model.safetensors")
    ups = {name: t.double().numpy() for name, t in tensors.items() if "lora_B" in name}
    total = sum(
        np.linalg.norm(up @ tensors[name.replace("lora_B", "lora_A")].double().numpy()) ** 2 for name, up in ups.items()
    )
    assert update_norm(folder) == pytest.approx(math.sqrt(total), rel=1e-9)


def test_drift_is_relative_and_padding_has_no_part_in_it(place: Path, tmp_path: Path) -> None:
    old = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    assert relative_change(1.25 * old, old) == pytest.approx(0.25)
    (tmp_path / "short.txt").write_text("abc" * 20)
    states = {}
    model = load_causal_lm(place / "lm", device=CPU)
    for length in (7, 40):
        settings = settings_of(place, text=str(tmp_path / "short.txt"), seq_len=length, num_windows=1)
        states[length] = knowledge.hidden_states(model, knowledge.read_knowledge_eval(settings, place / "lm", 1))
    assert len(states[7]) == len(states[40]) == 7  # a tenth of the text, and its end
    torch.testing.assert_close(states[40], states[7], rtol=1e-4, atol=1e-4)


def test_the_last_word_of_an_answer() -> None:
    assert [last_word(text) for text in ("1+1=2 so 2\n", "2", "", "  ")] == ["2", "2", "", ""]
