"""The small tokenizer of the grounding models: byte-level BPE learned from the questions, and 16 location tokens."""

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from subspacelab.core.files import write_json
from subspacelab.models.qwen_vl import BOX_START, IMAGE_PAD, LOCATIONS, VISION_END, VISION_START
from subspacelab.synthetic.grounding.scenes import COLOURS, QUESTIONS, WORDS

END, VIDEO_PAD = "<|endoftext|>", "<|video_pad|>"
SPECIAL = (END, VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD, BOX_START)


@dataclass(frozen=True)
class DemoTokenizer:
    """A `tokenizers.Tokenizer` and the ids of its special tokens."""

    tokenizer: Tokenizer
    """Converts between text and ids."""

    @property
    def vocab_size(self) -> int:
        """Number of rows of the embedding."""
        return int(self.tokenizer.get_vocab_size())

    @property
    def end(self) -> int:
        """End token of an answer; also the padding."""
        return self.id(END)

    @property
    def first_location(self) -> int:
        """Id of bin 0; bin i has id `first_location + i`."""
        return self.id(LOCATIONS[0])

    def id(self, token: str) -> int:
        """The id of one token of the vocabulary."""
        found = self.tokenizer.token_to_id(token)
        if found is None:
            raise ValueError(f"token {token!r} is not in the vocabulary; this is not the demo's tokenizer")
        return int(found)

    def encode(self, text: str) -> list[int]:
        """Ids of plain text, without special tokens."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)


def build_tokenizer() -> DemoTokenizer:
    """Learns the merges from every question and answer of the study; the same on every machine."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=[*SPECIAL, *LOCATIONS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    questions = [question.format(colour) for question in QUESTIONS for colour in COLOURS]
    tokenizer.train_from_iterator([*questions * 20, *WORDS], trainer)
    return DemoTokenizer(tokenizer)


def write_tokenizer(tokenizer: DemoTokenizer, folder: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json, which `AutoTokenizer` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": END,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 4096,
    }
    write_json(folder / "tokenizer_config.json", config)


def read_tokenizer(folder: Path) -> DemoTokenizer:
    """Reads what `write_tokenizer` wrote."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ValueError(f"{path}: no tokenizer there; point at a demo checkpoint")
    return DemoTokenizer(Tokenizer.from_file(str(path)))
