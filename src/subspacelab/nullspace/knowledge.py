"""What a model knows before and after training: old facts, the new task, and the drift of its hidden states."""

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
"""Name of the model without an adapter in tables."""
GROUPS = ("calibrated", "uncalibrated")
"""Facts whose question is in the calibration part of `KnowledgeSettings.text`, and facts whose question is not."""
RECALLS = tuple(f"{kind}{group}" for group in ("", *(f"_{g}" for g in GROUPS)) for kind in ("recall", "recall_begun"))
MEASURES = (*RECALLS, "task", "validation", "geometric_mean", "drift", "update_norm")


@dataclass(frozen=True)
class Knowledge:
    """Measures of one model's knowledge."""

    recall: float
    """Share of old facts answered exactly."""
    recall_begun: float
    """Share of old facts whose answer begins with the correct one, whether or not the model then stops."""
    recall_calibrated: float | None
    """recall of the facts whose question is in the calibration part of the text; None if there are none."""
    recall_begun_calibrated: float | None
    """recall_begun of the same facts."""
    recall_uncalibrated: float | None
    """recall of the facts whose question is not in it; None if there are none."""
    recall_begun_uncalibrated: float | None
    """recall_begun of the same facts."""
    task: float
    """Share of unseen problems with the correct result, which is the last word of the answer."""
    validation: float
    """The same for the problems that choose a learning rate."""
    geometric_mean: float
    """sqrt(recall * task): small if either is small."""
    drift: float
    """||H - H_0||_F / ||H_0||_F of the last hidden states on old text; H_0 are the base's."""
    update_norm: float
    """||dW||_F over all layers."""


@dataclass(frozen=True)
class KnowledgeEval:
    """The questions and the text on which a model is evaluated."""

    facts: Sequence[Instruction]
    """Old facts."""
    calibrated: Sequence[bool]
    """For each fact, whether its question is in the calibration text."""
    task: Sequence[Instruction]
    """Unseen problems of the new task."""
    validation: Sequence[Instruction]
    """Further problems, used to choose a learning rate."""
    windows: Windows
    """Old text that was not used in training."""
    settings: KnowledgeSettings
    """Batch size and longest answer."""


def read_knowledge_eval(settings: KnowledgeSettings, model: Path, seed: int) -> KnowledgeEval:
    """Reads facts, problems and text; the text becomes windows of the model's tokens."""
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
    """Knowledge of the base, and of each adapter on it, loaded by plain PEFT.

    All adapters must have the same base. ValueError for a folder without an adapter, and all errors of the readers.
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
    """Greedy answers, one token longer than the longest response, which shows whether an answer stops."""
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
    """Share of the values that are true."""
    found = list(hits)
    return sum(found) / len(found)


def last_word(text: str) -> str:
    """The last word of an answer, which is its result; empty for an empty answer."""
    return text.split()[-1] if text.split() else ""


@torch.inference_mode()
def hidden_states(model: Any, evaluation: KnowledgeEval) -> Float[Tensor, "tokens dim"]:
    """The last hidden states, after the final norm, of every token that is not padding."""
    found = []
    for i in range(0, len(evaluation.windows.input_ids), evaluation.settings.batch_size):
        ids, mask = (t[i : i + evaluation.settings.batch_size].to(model.device) for t in _pair(evaluation.windows))
        states = trunk_of(model)(input_ids=ids, attention_mask=mask.long(), use_cache=False).last_hidden_state
        found.append(states[mask].float().cpu())
    return torch.cat(found)


def _pair(windows: Windows) -> tuple[Tensor, Tensor]:
    return windows.input_ids, windows.attention_mask


def relative_change(new: Float[Tensor, "tokens dim"], old: Float[Tensor, "tokens dim"]) -> float:
    """||new - old||_F / ||old||_F, in float64; ValueError if the old states are all zero."""
    whole = float(old.double().norm())
    if not whole:
        raise ValueError("the base's last hidden states are all zero, so that no drift exists; its weights are damaged")
    return float((new.double() - old.double()).norm()) / whole


def update_norm(folder: Path) -> float:
    """||dW||_F over all layers of an adapter on disk, dW = lora_B lora_A; no matrix of the weights' size is formed.

    ||U D||_F^2 = tr((U^T U) (D D^T)).
    """
    tensors, _ = read_tensors(folder / WEIGHTS)
    total = 0.0
    for name in read_meta(folder)["targets"]:
        up, down = (tensors[f"{PREFIX}{name}.{kind}.weight"].double() for kind in ("lora_B", "lora_A"))
        total += float(((up.T @ up) * (down @ down.T)).sum())
    return math.sqrt(max(total, 0.0))
