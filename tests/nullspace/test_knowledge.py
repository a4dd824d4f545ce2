"""What a model knows: the counting, the table, and models of which the answers are known."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.nullspace.trainings import train_tiny, write_adapter_of, write_base

from subspacelab.data.instructions import Instruction, write_instructions
from subspacelab.models.causal_lm import load_causal_lm
from subspacelab.nullspace import knowledge
from subspacelab.nullspace.config import KnowledgeSettings
from subspacelab.nullspace.knowledge import (
    MEASURES,
    Knowledge,
    knowledge_table,
    last_word,
    measure_knowledge,
    relative_change,
    update_norm,
)
from subspacelab.nullspace.outcome import read_knowledge, write_knowledge

METHODS = ("lora_null_v2", "lora_null_v1")
CPU = torch.device("cpu")
FACTS = [Instruction(f"who{i}", answer) for i, answer in enumerate(("Anna", "Bert", "Cara", "Dora"))]
TASK = [Instruction("sum1", "1+1=2 so 2"), Instruction("sum2", "2+2=4 so 4")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, two adapters as built, facts and problems; to be read only."""
    folder = write_base(tmp_path_factory.mktemp("knowledge"))
    for method in METHODS:
        write_adapter_of(folder, folder / method, method)
    write_instructions(folder / "facts.jsonl", FACTS)
    write_instructions(folder / "task.jsonl", TASK)
    return folder


@pytest.fixture(scope="module")
def trained(place: Path) -> Path:
    """The same place, with `<method>-out/ft`, each trained."""
    for method in METHODS:
        train_tiny(place / method, place / f"{method}-out")
    return place


def settings_of(place: Path, **changes: Any) -> KnowledgeSettings:
    files = (str(place / name) for name in ("facts.jsonl", "task.jsonl", "text.txt"))
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
    answers |= {"sum1": "what is 2", "sum2": "2+2=4 so 5"}
    asked = answering(monkeypatch, answers)
    base, (one,) = measure_knowledge([place / "lora_null_v2"], settings_of(place), seed=1, device=CPU)
    assert (one.recall, one.recall_begun, one.task) == (0.25, 0.5, 0.5)
    assert one.geometric_mean == pytest.approx(math.sqrt(0.25 * 0.5))
    assert (base.recall, base.drift, base.update_norm) == (0.25, 0.0, 0.0)
    # Characters are tokens: one more than the longest response, which is enough to see that an answer goes on.
    assert asked == [5, 11, 5, 11]


def test_answers_are_no_longer_than_allowed_and_only_the_first_are_asked(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = answering(monkeypatch, {"who0": "Anna", "sum1": "2"})
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
        states[length] = knowledge.hidden_states(model, knowledge.read_exam(settings, place / "lm", 1))
    assert len(states[7]) == len(states[40]) == 7  # a tenth of the text, and its end
    torch.testing.assert_close(states[40], states[7], rtol=1e-4, atol=1e-4)


def test_the_last_word_of_an_answer() -> None:
    assert [last_word(text) for text in ("1+1=2 so 2\n", "2", "", "  ")] == ["2", "2", "", ""]


def known(recall: float, task: float) -> Knowledge:
    return Knowledge(recall, recall, task, math.sqrt(recall * task), 0.5, 3.0)


def test_the_table_has_the_base_first_and_the_deviation_of_a_sample() -> None:
    table = knowledge_table(known(1, 0), {"lora": [known(0.2, 0.8), known(0.4, 0.6)], "v2": [known(0.9, 0.5)]})
    assert list(table["method"]) == ["base", "lora", "v2"]
    assert list(table["num_seeds"]) == [1, 2, 1]
    assert table["recall_mean"].tolist() == pytest.approx([1, 0.3, 0.9])
    assert table["recall_std"].tolist() == pytest.approx([0, np.std([0.2, 0.4], ddof=1), 0])
    assert {f"{m}_{kind}" for m in MEASURES for kind in ("mean", "std")} <= set(table.columns)
    assert knowledge_table(None, {}).empty


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    found = {233: known(0.2, 0.8), 234: known(0.4, 0.6)}
    write_knowledge(tmp_path / "lora.json", known(1, 0), found)
    assert read_knowledge(tmp_path / "lora.json") == (known(1, 0), found)
    write_knowledge(tmp_path / "none.json", None, {})
    assert read_knowledge(tmp_path / "none.json") == (None, {})
    (tmp_path / "bad.json").write_text('{"base": {"recall": 1}, "seeds": {}}')
    with pytest.raises(ValueError, match=r"bad\.json: base\..*Field required"):
        read_knowledge(tmp_path / "bad.json")
