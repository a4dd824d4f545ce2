"""What a model knows before and after: old facts, the new task, and how far it has moved."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from subspacelab.checkpoints import read_tensors
from subspacelab.data.instructions import Instruction, prompt_of, read_instructions
from subspacelab.data.text import read_texts
from subspacelab.data.windows import Windows
from subspacelab.models.causal_lm import load_causal_lm, load_tokenizer, trunk_of
from subspacelab.models.generation import greedy_answers
from subspacelab.models.lora_folder import PREFIX, WEIGHTS, base_of, read_meta
from subspacelab.models.text_windows import text_windows
from subspacelab.models.tokens import encode
from subspacelab.nullspace.config import KnowledgeSettings
from subspacelab.nullspace.paths import require_adapter

BASE = "base"
"""The row of the model without an adapter."""
GROUPS = ("calibrated", "uncalibrated")
"""Facts whose question is in the calibration part of `KnowledgeSettings.text`, and those whose question is not."""
RECALLS = tuple(f"{kind}{group}" for group in ("", *(f"_{g}" for g in GROUPS)) for kind in ("recall", "recall_begun"))
MEASURES = (*RECALLS, "task", "validation", "geometric_mean", "drift", "update_norm")


@dataclass(frozen=True)
class Knowledge:
    """One model's."""

    recall: float
    """Share of old facts answered exactly."""
    recall_begun: float
    """Share of old facts whose answer begins with the right one: known, whether or not the model then stops."""
    recall_calibrated: float | None
    """recall of the facts whose question is in the calibration part of the text; None where there is none."""
    recall_begun_calibrated: float | None
    """recall_begun of these."""
    recall_uncalibrated: float | None
    """recall of the facts whose question is not in it; None where there is none."""
    recall_begun_uncalibrated: float | None
    """recall_begun of these."""
    task: float
    """Share of unseen problems with the right result: the last word of the answer."""
    validation: float
    """The same of the problems by which a learning rate is chosen."""
    geometric_mean: float
    """sqrt(recall * task): small when either is."""
    drift: float
    """||H - H_0||_F / ||H_0||_F of the last hidden states on old text, H_0 the base's."""
    update_norm: float
    """||dW||_F over all layers."""


@dataclass(frozen=True)
class KnowledgeEval:
    """What a model is asked."""

    facts: Sequence[Instruction]
    """Old facts."""
    calibrated: Sequence[bool]
    """Of each fact, whether its question is in the calibration text."""
    task: Sequence[Instruction]
    """Unseen problems of the new task."""
    validation: Sequence[Instruction]
    """Other ones, by which a learning rate is chosen."""
    windows: Windows
    """Old text that was not trained on."""
    settings: KnowledgeSettings
    """Batch size and longest answer."""


def read_knowledge_eval(settings: KnowledgeSettings, model: Path, seed: int) -> KnowledgeEval:
    """Reads facts, problems and text, the latter as windows of the model's tokens."""
    texts, calibration = read_texts(settings.text, split="test"), "\n\n".join(read_texts(settings.text))
    facts, task, validation = (
        read_instructions(rows)[: settings.limit] for rows in (settings.facts, settings.task, settings.validation)
    )
    return KnowledgeEval(
        facts,
        [prompt_of(fact.query) in calibration for fact in facts],
        task,
        validation,
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
    from subspacelab.models.lora_model import (
        load_plain,  # peft takes seconds, which tables of knowledge need not wait for
    )

    source = base_of(read_meta(require_adapter(adapters[0])), base)
    tokenizer, evaluation = load_tokenizer(source.folder), read_knowledge_eval(settings, source.folder, seed)
    model = load_causal_lm(source.folder, device=device)
    old = hidden_states(model, evaluation)
    first = _examine(model, tokenizer, evaluation, drift=0.0, update=0.0)
    del model
    found = []
    for folder in adapters:
        adapted = load_plain(source.folder, require_adapter(folder), device=device)
        drift = relative_change(hidden_states(adapted, evaluation), old)
        found.append(_examine(adapted, tokenizer, evaluation, drift=drift, update=update_norm(folder)))
        del adapted
    return first, found


def _examine(model: Any, tokenizer: Any, evaluation: KnowledgeEval, *, drift: float, update: float) -> Knowledge:
    answers = ask(model, tokenizer, evaluation.facts, evaluation.settings)
    pairs = [(answer.strip(), fact.response.strip()) for answer, fact in zip(answers, evaluation.facts, strict=True)]
    exact, begun = [a == r for a, r in pairs], [a.startswith(r) for a, r in pairs]
    recall = share(exact)
    task, validation = (
        _solved(model, tokenizer, rows, evaluation.settings) for rows in (evaluation.task, evaluation.validation)
    )
    return Knowledge(
        recall=recall,
        recall_begun=share(begun),
        recall_calibrated=_share_of(exact, evaluation.calibrated),
        recall_begun_calibrated=_share_of(begun, evaluation.calibrated),
        recall_uncalibrated=_share_of(exact, [not asked for asked in evaluation.calibrated]),
        recall_begun_uncalibrated=_share_of(begun, [not asked for asked in evaluation.calibrated]),
        task=task,
        validation=validation,
        geometric_mean=math.sqrt(recall * task),
        drift=drift,
        update_norm=update,
    )


def _share_of(hits: Sequence[bool], chosen: Sequence[bool]) -> float | None:
    return share(hit for hit, one in zip(hits, chosen, strict=True) if one) if any(chosen) else None


def _solved(model: Any, tokenizer: Any, rows: Sequence[Instruction], settings: KnowledgeSettings) -> float:
    answers = ask(model, tokenizer, rows, settings)
    return share(last_word(a) == last_word(row.response) for a, row in zip(answers, rows, strict=True))


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
def hidden_states(model: Any, evaluation: KnowledgeEval) -> Float[Tensor, "tokens dim"]:
    """The last hidden states, after the final norm, of every token that is no padding."""
    found = []
    for i in range(0, len(evaluation.windows.input_ids), evaluation.settings.batch_size):
        ids, mask = (t[i : i + evaluation.settings.batch_size].to(model.device) for t in _pair(evaluation.windows))
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
