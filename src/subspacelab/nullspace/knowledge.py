"""What a model knows before and after: old facts, the new task, and how far it has moved."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from subspacelab.checkpoints import read_tensors
from subspacelab.data.instructions import Instruction, read_instructions
from subspacelab.data.text import read_texts
from subspacelab.data.windows import Windows
from subspacelab.models.causal_lm import load_causal_lm, load_tokenizer, trunk_of
from subspacelab.models.generation import greedy_answers
from subspacelab.models.lora_folder import PREFIX, WEIGHTS, read_meta
from subspacelab.models.plain_lora import load_plain
from subspacelab.models.tokens import encode
from subspacelab.nullspace.config import KnowledgeSettings
from subspacelab.nullspace.places import base_of, require_adapter
from subspacelab.nullspace.windows import text_windows

BASE = "base"
"""The row of the model without an adapter."""
MEASURES = ("recall", "recall_begun", "task", "geometric_mean", "drift", "update_norm")


@dataclass(frozen=True)
class Knowledge:
    """One model's."""

    recall: float
    """Share of old facts answered exactly."""
    recall_begun: float
    """Share of old facts whose answer begins with the right one: known, whether or not the model then stops."""
    task: float
    """Share of unseen problems with the right result: the last word of the answer."""
    geometric_mean: float
    """sqrt(recall * task): small when either is."""
    drift: float
    """||H - H_0||_F / ||H_0||_F of the last hidden states on old text, H_0 the base's."""
    update_norm: float
    """||dW||_F over all layers."""


@dataclass(frozen=True)
class Exam:
    """What a model is asked."""

    facts: Sequence[Instruction]
    """Old facts."""
    task: Sequence[Instruction]
    """Unseen problems of the new task."""
    windows: Windows
    """Old text that was not trained on."""
    settings: KnowledgeSettings
    """Batch size and longest answer."""


def read_exam(settings: KnowledgeSettings, model: Path, seed: int) -> Exam:
    """Reads facts, problems and text, the latter as windows of the model's tokens."""
    texts = read_texts(settings.text, split="test")
    return Exam(
        read_instructions(settings.facts)[: settings.limit],
        read_instructions(settings.task)[: settings.limit],
        text_windows(model, texts, settings.num_windows, settings.seq_len, seed),
        settings,
    )


def measure_knowledge(
    adapters: Sequence[Path], settings: KnowledgeSettings, *, seed: int, device: torch.device, base: str | None = None
) -> tuple[Knowledge, list[Knowledge]]:
    """The base's knowledge, and that of each adapter on it, loaded as plain PEFT loads it.

    The adapters must be of one base. Raises ValueError for a folder without an adapter, and for what the readers
    refuse.
    """
    source = base_of(read_meta(require_adapter(adapters[0])), base)
    tokenizer, exam = load_tokenizer(source.folder), read_exam(settings, source.folder, seed)
    model = load_causal_lm(source.folder, device=device)
    old = hidden_states(model, exam)
    first = _examine(model, tokenizer, exam, drift=0.0, update=0.0)
    del model
    found = []
    for folder in adapters:
        adapted = load_plain(source.folder, require_adapter(folder), device=device)
        drift = relative_change(hidden_states(adapted, exam), old)
        found.append(_examine(adapted, tokenizer, exam, drift=drift, update=update_norm(folder)))
        del adapted
    return first, found


def _examine(model: Any, tokenizer: Any, exam: Exam, *, drift: float, update: float) -> Knowledge:
    facts, task = (ask(model, tokenizer, rows, exam.settings) for rows in (exam.facts, exam.task))
    recall = share(a.strip() == row.response.strip() for a, row in zip(facts, exam.facts, strict=True))
    begun = share(a.strip().startswith(row.response.strip()) for a, row in zip(facts, exam.facts, strict=True))
    solved = share(last_word(a) == last_word(row.response) for a, row in zip(task, exam.task, strict=True))
    return Knowledge(recall, begun, solved, math.sqrt(recall * solved), drift, update)


def ask(model: Any, tokenizer: Any, rows: Sequence[Instruction], settings: KnowledgeSettings) -> list[str]:
    """Greedy answers, one token longer than the longest response: enough to see that one does not stop."""
    responses = encode(tokenizer, [row.response for row in rows])
    longest = max(map(len, responses)) + 1
    return greedy_answers(
        model,
        tokenizer,
        [row.query for row in rows],
        max_new_tokens=min(longest, settings.max_new_tokens),
        batch_size=settings.batch_size,
    )


def share(hits: Iterable[bool]) -> float:
    """How many of them are true, as a share."""
    found = list(hits)
    return sum(found) / len(found)


def last_word(text: str) -> str:
    """The result that a worked answer ends with; empty of an empty one."""
    return text.split()[-1] if text.split() else ""


@torch.inference_mode()
def hidden_states(model: Any, exam: Exam) -> Float[Tensor, "tokens dim"]:
    """The last hidden states, after the final norm, of every token that is no padding."""
    found = []
    for i in range(0, len(exam.windows.input_ids), exam.settings.batch_size):
        ids, mask = (t[i : i + exam.settings.batch_size].to(model.device) for t in _pair(exam.windows))
        states = trunk_of(model)(input_ids=ids, attention_mask=mask.long(), use_cache=False).last_hidden_state
        found.append(states[mask].float().cpu())
    return torch.cat(found)


def _pair(windows: Windows) -> tuple[Tensor, Tensor]:
    return windows.input_ids, windows.attention_mask


def relative_change(new: Float[Tensor, "tokens dim"], old: Float[Tensor, "tokens dim"]) -> float:
    """||new - old||_F / ||old||_F, in float64; ValueError where the old ones are all zero."""
    whole = float(old.double().norm())
    if not whole:
        raise ValueError("the base's last hidden states are all zero, so that no drift exists; its weights are damaged")
    return float((new.double() - old.double()).norm()) / whole


def update_norm(folder: Path) -> float:
    """||dW||_F over all layers of an adapter on disk, dW = lora_B lora_A; no product of the weights' size is formed.

    ||U D||_F^2 = tr((U^T U) (D D^T)).
    """
    tensors, _ = read_tensors(folder / WEIGHTS)
    total = 0.0
    for name in read_meta(folder)["targets"]:
        up, down = (tensors[f"{PREFIX}{name}.{kind}.weight"].double() for kind in ("lora_B", "lora_A"))
        total += float(((up.T @ up) * (down @ down.T)).sum())
    return math.sqrt(max(total, 0.0))


def knowledge_table(base: Knowledge | None, found: Mapping[str, Sequence[Knowledge]]) -> pd.DataFrame:
    """method, num_seeds, and mean and std of each measure over the seeds; the base is the first row.

    The deviation is the sample's (n - 1), and 0 of one seed. Without a base there is no row.
    """
    spreads = [f"{name}_{kind}" for name in MEASURES for kind in ("mean", "std")]
    rows = []
    for method, seeds in [] if base is None else [(BASE, [base]), *found.items()]:
        values = pd.DataFrame([asdict(knowledge) for knowledge in seeds])
        row: dict[str, Any] = {"method": method, "num_seeds": len(seeds)}
        for name in MEASURES:
            row[f"{name}_mean"] = float(values[name].mean())
            row[f"{name}_std"] = float(values[name].std()) if len(seeds) > 1 else 0.0
        rows.append(row)
    return pd.DataFrame(rows, columns=["method", "num_seeds", *spreads])
