"""The synthetic llm: a small Llama with its own tokenizer learns the corpus as text, and its facts as answers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn import functional as F

from subspacelab.core.callbacks import Log, no_log
from subspacelab.core.files import replace_folder, write_json
from subspacelab.core.settings import Count, NotNegative, Positive, settings
from subspacelab.data.instructions import Instruction, prompt_of, read_instructions
from subspacelab.data.text import paragraphs
from subspacelab.data.windows import Windows, token_windows
from subspacelab.models.llama import LlamaSizes, TextTokens, build_llama, save_llama
from subspacelab.training.fit import Training, fit

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
BOS_ID, EOS_ID, PAD_ID = range(3)  # special tokens come first, in the order given


def build_llm_tokenizer(texts: Iterable[str], *, vocab_size: int) -> Tokenizer:
    """Learns at most `vocab_size` tokens, the three special ones first; equal texts give an equal tokenizer.

    Like Llama's, it begins each encoded text with `<s>` unless called without special tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, BOS_ID)])
    return tokenizer


def write_llm_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json, which `AutoTokenizer` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
    }
    write_json(folder / "tokenizer_config.json", config)


IGNORED = -100


@settings
class LlmTraining(Training):
    """Settings of the llm's training."""

    learning_rate: Positive = 2e-3
    """Peak learning rate of AdamW, in a one-cycle schedule."""
    questions: Count = 48
    """Questions per step; the loss is computed on the answers."""
    windows: Count = 8
    """Windows of text per step; the loss is computed on every token."""
    seq_len: Count = 96
    """Tokens per window."""
    weight_decay: NotNegative = 0.01
    """Weight decay of AdamW."""
    vocab_size: Count = 800
    """Largest number of tokens in the vocabulary."""
    recall_every: Count = 25
    """Steps between the points of the curve of recall."""
    sizes: LlamaSizes = field(default_factory=LlamaSizes)
    """The model's sizes."""


@dataclass(frozen=True)
class Lessons:
    """Rows of token ids, padded on the right, and their targets."""

    input_ids: Int[Tensor, "n length"]
    """Such as prompt, answer and end token."""
    targets: Int[Tensor, "n length"]
    """The tokens to predict, at their positions, such as answer and end token; -100 elsewhere."""

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.input_ids)

    def __getitem__(self, rows: Tensor) -> "Lessons":
        """A selection of the rows."""
        return Lessons(self.input_ids[rows], self.targets[rows])


@dataclass(frozen=True)
class TrainedLlm:
    """A checkpoint in memory."""

    model: Any
    """A `LlamaForCausalLM`."""
    tokenizer: Tokenizer
    """Its own."""

    def save(self, folder: Path) -> None:
        """Writes a Hugging Face folder, whole or not at all; `load_llama` reads it."""
        with replace_folder(folder) as partial:
            save_llama(self.model, partial)
            write_llm_tokenizer(self.tokenizer, partial)


def train_llm(corpus: Path, work_dir: Path, *, training: LlmTraining, seed: int, log: Log = no_log) -> TrainedLlm:
    """Trains from scratch on the folder `corpus`; a killed run continues from `work_dir` to the same bytes."""
    texts = paragraphs((corpus / "train.txt").read_text(encoding="utf-8"))
    facts = read_instructions(str(corpus / "facts.jsonl"))
    tokenizer = build_llm_tokenizer(
        [*texts, *(prompt_of(fact.query) + fact.response for fact in facts)], vocab_size=training.vocab_size
    )
    tokens = TextTokens(tokenizer.get_vocab_size(), BOS_ID, EOS_ID, PAD_ID)
    model = build_llama(training.sizes, tokens, seed=seed).train()
    lessons = encode_lessons(tokenizer, facts)
    windows = token_windows(
        [encoded.ids for encoded in tokenizer.encode_batch(texts, add_special_tokens=False)],
        num_windows=sum(map(len, texts)),  # more than there are: all of them
        seq_len=training.seq_len,
        seed=seed,
        separator=EOS_ID,
    )
    reading = window_lessons(windows)

    def loss_of(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        asked = lessons[torch.randint(len(lessons), (training.questions,), generator=generator)]
        read = reading[torch.randint(len(reading), (training.windows,), generator=generator)]
        answer, text = next_token_loss(model, asked), next_token_loss(model, read)
        return answer + text, {"answer_loss": answer, "text_loss": text}

    def after_step(done: int) -> None:
        if training.is_due(training.recall_every, done):
            log({"recall": float(recalled(model, lessons).float().mean())}, done)

    fit(
        model,
        torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=training.weight_decay),
        loss_of,
        training.plan(work_dir, name=f"llm {seed}"),
        log=log,
        after_step=after_step,
    )
    return TrainedLlm(model, tokenizer)


def encode_lessons(tokenizer: Tokenizer, instructions: Sequence[Instruction]) -> Lessons:
    """Each instruction as its prompt, its response and the end token."""
    rows = []
    for instruction in instructions:
        prompt = tokenizer.encode(prompt_of(instruction.query)).ids
        rows.append((prompt, [*tokenizer.encode(instruction.response, add_special_tokens=False).ids, EOS_ID]))
    length = max(len(prompt) + len(answer) for prompt, answer in rows)
    input_ids, targets = torch.full((len(rows), length), PAD_ID), torch.full((len(rows), length), IGNORED)
    for i, (prompt, answer) in enumerate(rows):
        whole = len(prompt) + len(answer)
        input_ids[i, :whole] = torch.tensor(prompt + answer)
        targets[i, len(prompt) : whole] = torch.tensor(answer)
    return Lessons(input_ids, targets)


def window_lessons(windows: Windows) -> Lessons:
    """Windows of plain text: every token is a target."""
    return Lessons(windows.input_ids, windows.input_ids.masked_fill(~windows.attention_mask, IGNORED))


def next_token_loss(model: Any, lessons: Lessons) -> Float[Tensor, ""]:
    """Mean cross-entropy, in nats, of the targets, each predicted from the tokens before it."""
    logits = model(input_ids=lessons.input_ids, use_cache=False).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), lessons.targets[:, 1:].flatten(), ignore_index=IGNORED)


@torch.no_grad()
def recalled(model: Any, lessons: Lessons) -> Bool[Tensor, " n"]:
    """Whether the greedy answer is exact: each answer token must be the likeliest after the correct ones before."""
    likeliest = model(input_ids=lessons.input_ids, use_cache=False).logits[:, :-1].argmax(-1)
    wanted = lessons.targets[:, 1:]
    return ((likeliest == wanted) | (wanted == IGNORED)).all(1)
