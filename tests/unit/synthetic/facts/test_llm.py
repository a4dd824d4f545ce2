"""The llm's training end to end, minutes shrunk to seconds."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from subspacelab.checkpoints import resolve_reference, write_checkpoint
from subspacelab.checkpoints.references import REPORTS, take_from_hub
from subspacelab.data.instructions import Instruction, prompt_of, read_instructions
from subspacelab.data.text import paragraphs
from subspacelab.models.generation import greedy_answers
from subspacelab.models.llama import LlamaSizes, load_llama
from subspacelab.synthetic.facts.corpus import CorpusConfig, make_corpus
from subspacelab.synthetic.facts.evaluation import evaluate_llm, text_loss
from subspacelab.synthetic.facts.llm import (
    Lessons,
    LlmTraining,
    build_llm_tokenizer,
    encode_lessons,
    next_token_loss,
    recalled,
    train_llm,
)
from subspacelab.synthetic.logging import record_llm
from subspacelab.tracking.protocol import ModelFiles

SMALL = LlmTraining(
    steps=96,
    questions=12,
    windows=2,
    seq_len=32,
    learning_rate=1e-2,
    vocab_size=420,
    recall_every=12,
    snapshot_every=8,
    sizes=LlamaSizes(48, 2, 4, 64),
)
CORPUS = CorpusConfig(
    people=3, rounds=4, asked=1, sheets=3, arithmetic_train=20, arithmetic_validation=5, arithmetic_test=10
)


class Killed(Exception):
    """Stands for whatever ends a run."""


def _ignore(metrics: Mapping[str, float], step: int) -> None:
    assert all(isinstance(v, float) for v in metrics.values())


def _bytes(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "corpus"
    make_corpus(CORPUS, seed=1).save(folder)
    return folder


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llm")
    train_llm(corpus, folder / "work", training=SMALL, seed=1, log=_ignore).save(folder / "llm")
    return folder / "llm"


@pytest.mark.slow
def test_two_runs_give_the_same_bytes_and_a_seed_another_model(corpus: Path, trained: Path, tmp_path: Path) -> None:
    train_llm(corpus, tmp_path / "work", training=SMALL, seed=1, log=_ignore).save(tmp_path / "again")
    assert _bytes(tmp_path / "again") == _bytes(trained)
    train_llm(corpus, tmp_path / "work", training=replace(SMALL, steps=2), seed=2, log=_ignore).save(tmp_path / "other")
    assert _bytes(tmp_path / "other") != _bytes(trained)


@pytest.mark.slow
def test_a_killed_run_continues_to_the_same_bytes(corpus: Path, trained: Path, tmp_path: Path) -> None:
    def kill(metrics: Mapping[str, float], step: int) -> None:
        if "recall" in metrics and step == 36:
            raise Killed

    with pytest.raises(Killed):
        train_llm(corpus, tmp_path / "work", training=SMALL, seed=1, log=kill)
    assert (tmp_path / "work" / "snapshot.safetensors").is_file()
    train_llm(corpus, tmp_path / "work", training=SMALL, seed=1, log=_ignore).save(tmp_path / "out")
    assert _bytes(tmp_path / "out") == _bytes(trained)


@pytest.mark.slow
def test_the_llm_learns_its_facts_and_its_text(corpus: Path, trained: Path, tmp_path: Path) -> None:
    evaluation = evaluate_llm(trained, corpus)
    evaluation.save(tmp_path)
    figures = evaluation.metrics
    assert figures["num_facts"] == 12
    assert figures["recall"] >= 0.95
    assert figures["arithmetic"] == 0.0
    assert figures["test_loss"] < figures["uniform_loss"] - 2
    assert json.loads((tmp_path / "llm.json").read_text()).keys() == figures.keys()


@pytest.mark.slow
def test_transformers_loads_the_folder_unchanged(trained: Path) -> None:
    model, report = AutoModelForCausalLM.from_pretrained(trained, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.dtype == torch.float32
    theirs, raw = AutoTokenizer.from_pretrained(trained), Tokenizer.from_file(str(trained / "tokenizer.json"))
    assert len(theirs) == model.config.vocab_size
    text = prompt_of("In which year was Ada Adler born?") + "1951"
    assert theirs(text)["input_ids"] == raw.encode(text).ids, "beside a Llama's config.json, too"


@pytest.mark.slow
def test_recall_while_training_is_that_of_greedy_answers(corpus: Path, trained: Path) -> None:
    """Also for answers that only begin right, and for those that go on too long."""
    model, tokenizer = load_llama(trained)
    taught = read_instructions(str(corpus / "facts.jsonl"))
    facts = [*taught, *(Instruction(f.query, f.response[:-1]) for f in taught), Instruction("Who?", taught[0].response)]
    answers = greedy_answers(model, tokenizer, [f.query for f in facts], max_new_tokens=16, batch_size=5)
    right = [answer == fact.response for answer, fact in zip(answers, facts, strict=True)]
    assert recalled(model, encode_lessons(tokenizer.backend_tokenizer, facts)).tolist() == right
    assert 0 < sum(right) < len(right)


@pytest.mark.slow
def test_the_loss_of_text_is_the_mean_over_its_tokens(corpus: Path, trained: Path) -> None:
    model, tokenizer = load_llama(trained)
    (text, *_) = paragraphs((corpus / "test.txt").read_text())
    ids = torch.tensor([[*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0].double().log_softmax(-1)
    wanted = -logits[torch.arange(ids.shape[1] - 1), ids[0, 1:]].mean()
    assert math.isclose(text_loss(model, tokenizer, [text]), float(wanted), rel_tol=1e-5)  # float32 against float64


def test_lessons_ask_for_the_answer_and_the_end_alone() -> None:
    facts = [Instruction("Who?", "me"), Instruction("Who is longer?", "you, too")]
    tokenizer = build_llm_tokenizer([prompt_of(f.query) + f.response for f in facts], vocab_size=300)
    lessons = encode_lessons(tokenizer, facts)
    for i, fact in enumerate(facts):
        wanted = lessons.targets[i] != -100
        asked = tokenizer.decode(lessons.input_ids[i][wanted].tolist(), skip_special_tokens=False)
        assert asked == f"{fact.response}</s>"
        assert torch.equal(lessons.input_ids[i][wanted], lessons.targets[i][wanted])
        before = lessons.input_ids[i][: int(wanted.nonzero()[0])].tolist()
        assert tokenizer.decode(before) == prompt_of(fact.query)


def test_the_loss_counts_only_what_is_asked_for() -> None:
    class Fixed:
        def __call__(self, input_ids, use_cache):
            logits = torch.randn(*input_ids.shape, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            return type("Out", (), {"logits": logits})

    ids = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]])
    targets = torch.tensor([[-100, -100, 3, 4], [-100, 6, -100, -100]])
    logits = Fixed()(ids, False).logits
    wanted = (F.cross_entropy(logits[0, 1:3], ids[0, 2:]) * 2 + F.cross_entropy(logits[1, :1], ids[1, 1:2])) / 3
    assert torch.isclose(next_token_loss(Fixed(), Lessons(ids, targets)), wanted, rtol=1e-12)


class Recorder:
    """A tracker that keeps what it was told."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}
        self.headline: dict[str, float] = {}
        self.models: list[ModelFiles] = []

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        self.metrics |= metrics

    def log_headline(self, metrics: Mapping[str, float]) -> None:
        self.headline |= metrics

    def log_model(self, model: ModelFiles) -> None:
        self.models.append(model)


@pytest.mark.slow
def test_what_is_recorded_answers_questions_again(
    corpus: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.chdir(tmp_path)
    tracker = Recorder()
    evaluation = evaluate_llm(trained, corpus)
    evaluation.save(REPORTS)
    record_llm(evaluation, trained, tracker)  # type: ignore[arg-type]
    assert tracker.headline == {"llm_recall": tracker.metrics["recall"]}
    assert json.loads(Path("reports/checkpoints/llm.json").read_text())["recall"] == round(tracker.metrics["recall"], 6)
    (model,) = tracker.models
    artifacts = {"model": str(model.folder)}
    mlflow.pyfunc.save_model("saved", python_model=str(model.code), artifacts=artifacts, pip_requirements=[])
    facts = read_instructions(str(corpus / "facts.jsonl"))
    answers = mlflow.pyfunc.load_model("saved").predict([fact.query for fact in facts])
    assert answers == greedy_answers(*load_llama(trained), [f.query for f in facts], max_new_tokens=16, batch_size=32)


def test_a_checkpoint_from_elsewhere_is_pointed_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "theirs", {"w": torch.ones(2, 2)}, {"model_type": "llama"})
    for trained_here in ("train", "demo:llm"):
        assert not take_from_hub(trained_here, Path("data/checkpoints/llm"))
    assert not Path("data").exists()
    assert take_from_hub(str(tmp_path / "theirs"), Path("data/checkpoints/llm"))
    assert resolve_reference("pipeline:llm").folder == tmp_path / "theirs"
    assert json.loads(Path("reports/checkpoints/llm.json").read_text())["reference"] == str(tmp_path / "theirs")
