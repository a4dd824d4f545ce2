"""Evaluation of a trained llm: what it recalls, its loss on unseen text, and that it cannot add."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from subspacelab.core.files import write_json
from subspacelab.data.instructions import Instruction, read_instructions
from subspacelab.data.text import paragraphs
from subspacelab.data.windows import token_windows
from subspacelab.models.generation import greedy_answers
from subspacelab.models.llama import load_llama
from subspacelab.synthetic.facts.llm import next_token_loss, window_lessons

LONGEST_ANSWER = 16  # tokens: a worked sum takes 8
SEQ_LEN, MAX_WINDOWS = 96, 64


@dataclass(frozen=True)
class LlmEvaluation:
    """Metrics of a checkpoint's knowledge."""

    name: str
    """Name of the checkpoint."""
    metrics: dict[str, float]
    """See `evaluate_llm`."""

    def save(self, folder: Path) -> None:
        """Writes the metrics, rounded to six decimals, to `folder/<name>.json`."""
        write_json(folder / f"{self.name}.json", {key: round(value, 6) for key, value in self.metrics.items()})


def evaluate_llm(folder: Path, corpus: Path) -> LlmEvaluation:
    """Asks a checkpoint folder about `corpus`.

    `recall`: share of the facts that the greedy answer gives exactly; `recall_se`: its standard error; `arithmetic`:
    the same for sums with solutions, which were not in its training; `test_loss`: mean cross-entropy, in nats per
    token, of the corpus's test text; `uniform_loss`: the loss of a uniform guess, ln(vocabulary).
    """
    model, tokenizer = load_llama(folder)
    facts = read_instructions(str(corpus / "facts.jsonl"))
    sums = read_instructions(str(corpus / "arithmetic-test.jsonl"))
    recall = exact_share(model, tokenizer, facts)
    metrics = {
        "recall": recall,
        "recall_se": math.sqrt(recall * (1 - recall) / len(facts)),
        "num_facts": len(facts),
        "arithmetic": exact_share(model, tokenizer, sums),
        "num_sums": len(sums),
        "test_loss": text_loss(model, tokenizer, paragraphs((corpus / "test.txt").read_text(encoding="utf-8"))),
        "uniform_loss": math.log(len(tokenizer)),
    }
    return LlmEvaluation(folder.name, metrics)


def exact_share(model: Any, tokenizer: Any, asked: Sequence[Instruction]) -> float:
    """Share of the greedy answers that equal the response exactly."""
    queries = [instruction.query for instruction in asked]
    answers = greedy_answers(model, tokenizer, queries, max_new_tokens=LONGEST_ANSWER, batch_size=64)
    return sum(answer == i.response for answer, i in zip(answers, asked, strict=True)) / len(asked)


@torch.no_grad()
def text_loss(model: Any, tokenizer: Any, texts: Sequence[str]) -> float:
    """Mean cross-entropy, in nats per token, on windows of `texts`."""
    documents = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    windows = token_windows(
        documents, num_windows=MAX_WINDOWS, seq_len=SEQ_LEN, seed=0, separator=tokenizer.eos_token_id
    )
    return float(next_token_loss(model, window_lessons(windows)))
