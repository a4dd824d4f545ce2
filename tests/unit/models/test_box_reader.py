"""Boxes read from given tokens: those that the model finds when it sees the picture itself."""

from pathlib import Path

import pytest
import torch
from tests.tiny import write_tiny_qwen_vl
from tests.unit.synthetic.tiny import TINY
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from subspacelab.core.files import read_json, write_json
from subspacelab.data.pictures import patchify
from subspacelab.models.box_reader import AFTER, BEFORE, BoxReader, load_box_reader
from subspacelab.models.qwen_vl import (
    IMAGE_PAD,
    VISION_END,
    VISION_START,
    build_qwen_vl,
    load_qwen_vl,
    save_qwen_vl,
    vision_tokens,
)
from subspacelab.synthetic.grounding.model import GroundingModel, build_model, decode_boxes, encode_prompts
from subspacelab.synthetic.grounding.tokenizer import build_tokenizer

QUESTIONS = ["Where is the red word?", "Which word, of all that are here, is in yellow?", "Where is the red word?"]
CHAT_TOKENS = ("<|im_start|>", "<|im_end|>", VISION_START, VISION_END, IMAGE_PAD, "<|video_pad|>")
CPU = torch.device("cpu")


def pictures() -> Tensor:
    return torch.randint(0, 256, (3, 112, 112, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def tokens_of(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        return vision_tokens(model, dict(zip(("pixel_values", "image_grid_thw"), patchify(pictures()), strict=True)))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that answers with location tokens."""
    folder = tmp_path_factory.mktemp("demo") / "base"
    tokenizer = build_tokenizer()
    GroundingModel(build_model(tokenizer, seed=0, sizes=TINY, initializer_range=0.1), tokenizer).save(folder)
    return folder


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that answers in words: bytes, and the special tokens of Qwen2.5-VL."""
    folder = tmp_path_factory.mktemp("chat") / "tiny"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*CHAT_TOKENS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(CHAT_TOKENS))
    ids = {"image_token_id": IMAGE_PAD, "video_token_id": "<|video_pad|>", "vision_start_token_id": VISION_START}
    ids |= {"vision_end_token_id": VISION_END, "eos_token_id": "<|im_end|>"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        token_ids = {name: vocabulary[token] for name, token in ids.items()}
        model = build_qwen_vl(TINY, vocab_size=len(vocabulary), token_ids=token_ids, initializer_range=0.2)
    save_qwen_vl(model, folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    return folder


def test_the_models_own_tokens_give_the_boxes_that_it_finds_in_the_pictures(demo: Path) -> None:
    trained, reader = GroundingModel.load(demo), load_box_reader(demo, CPU)
    found = reader.read(tokens_of(trained.model), QUESTIONS, 112)
    for i, question in enumerate(QUESTIONS):  # of two lengths, asked in one call
        batch = encode_prompts(trained.tokenizer, pictures()[i : i + 1], [question])
        assert torch.equal(found[i], decode_boxes(trained.model, trained.tokenizer, batch, size=112).boxes[0])
    assert reader.dim == 32


def test_other_tokens_give_other_boxes(demo: Path) -> None:
    tokens = tokens_of(GroundingModel.load(demo).model)
    reader = load_box_reader(demo, CPU)
    assert not torch.equal(reader.read(tokens, QUESTIONS, 112), reader.read(-tokens, QUESTIONS, 112))


def answered(
    reader: BoxReader, tokens: Tensor, questions: list[str], monkeypatch: pytest.MonkeyPatch
) -> list[list[int]]:
    """The ids that each box would be read from."""
    found: list[list[int]] = []
    monkeypatch.setattr(reader.answers, "box", lambda ids, size: found.append(ids) or torch.zeros(4), raising=False)
    reader.read(tokens, questions, 112)
    return found


def test_words_are_those_that_transformers_generates_from_the_pixels(
    chat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, reader = load_qwen_vl(chat), load_box_reader(chat, CPU)
    tokenizer, end = reader.answers._tokenizer, reader.answers._tokenizer.convert_tokens_to_ids("<|im_end|>")
    found = answered(reader, tokens_of(model), ["Where?"] * 3, monkeypatch)
    pixels, grid = patchify(pictures())
    text = BEFORE + IMAGE_PAD * 16 + AFTER.format(question="Where?")
    ids = torch.tensor([tokenizer(text)["input_ids"]] * 3)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels, "image_grid_thw": grid}
    types = (ids == tokenizer.convert_tokens_to_ids(IMAGE_PAD)).int()
    made = model.generate(**inputs, mm_token_type_ids=types, max_new_tokens=64, do_sample=False)[:, ids.shape[1] :]
    expected = [row[: row.index(end)] if end in row else row for row in made.tolist()]
    assert found == expected
    assert any(expected)


@pytest.mark.parametrize(
    ("said", "box"),
    [
        ('```json\n[{"bbox_2d": [10, 20, 30, 60], "label": "a"}]\n```', [10, 20, 20, 40]),
        ('{"bbox_2d": [ 1.5,2, 3.5 ,8 ]} [0, 0, 9, 9]', [1.5, 2, 2, 6]),
        ("[30, 60, 10, 20]", [30, 60, 0, 0]),
        ("there is none [1, 2, 3]", [0, 0, 0, 0]),
        ("[1e9, 2, 3, 4] [" + "9" * 400 + ", 1, 2, 3]", [0, 0, 0, 0]),
        ("", [0, 0, 0, 0]),
    ],
)
def test_the_first_box_of_the_words_counts(chat: Path, said: str, box: list[float]) -> None:
    answers = load_box_reader(chat, CPU).answers
    assert answers.box(answers._tokenizer(said)["input_ids"], 112).tolist() == box


def test_what_cannot_read_boxes_is_refused(tmp_path: Path, chat: Path) -> None:
    with pytest.raises(ValueError, match="its tokenizer lacks"):
        load_box_reader(write_tiny_qwen_vl(tmp_path / "bare"), CPU)
    config = read_json(tmp_path / "bare" / "config.json")
    write_json(tmp_path / "bare" / "config.json", config | {"model_type": "llama"})
    with pytest.raises(ValueError, match="says 'llama'; boxes are read by a 'qwen2_5_vl' checkpoint"):
        load_box_reader(tmp_path / "bare", CPU)
    lacking = tmp_path / "lacking"
    lacking.mkdir()
    for file in chat.iterdir():
        (lacking / file.name).write_bytes(file.read_bytes())
    text = (lacking / "tokenizer.json").read_text().replace("<|im_start|>", "<|other|>")
    (lacking / "tokenizer.json").write_text(text)
    with pytest.raises(ValueError, match=r"its tokenizer lacks <\|im_start\|>"):
        load_box_reader(lacking, CPU)
    with pytest.raises(ValueError, match="no such checkpoint"):
        load_box_reader(tmp_path / "nowhere", CPU)
