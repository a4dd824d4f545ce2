"""The card of an adapter: what it says, that PEFT and the hub read it, and that nobody's edits are lost."""

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from tests.unit.nullspace.builds import make
from tests.unit.nullspace.trainings import contents, known, train_tiny

from subspacelab.models.adapter_card import CARD, edited_card, is_own, signed, write_card
from subspacelab.models.lora_folder import read_meta
from subspacelab.nullspace.card import Measured, add_measured, card_of, measured_knowledge
from subspacelab.nullspace.inits import METHODS


def text_of(folder: Path) -> str:
    return (folder / CARD).read_text(encoding="utf-8")


def on_hub(meta: dict[str, Any]) -> dict[str, Any]:
    return meta | {"base": {"reference": "org/name", "revision": "c" * 40, "digest": "d"}}


def test_the_card_says_what_was_built(bases: Path, tmp_path: Path) -> None:
    make(bases, tmp_path / "out")
    text, meta = text_of(tmp_path / "out"), read_meta(tmp_path / "out")
    card, found = ModelCard.load(tmp_path / "out" / CARD), meta["summary"]
    assert (card.data.library_name, card.data.pipeline_tag) == ("peft", "text-generation")
    assert card.data.base_model is None, "a folder is no repository, and the hub refuses it"
    assert {"lora", "lora-null-v2"} <= set(card.data.tags)
    assert "# lora_null_v2 adapter of rank 5 on llama" in text
    assert str(bases) not in text, "where somebody keeps a model is nobody's business"
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}
    assert rows["this adapter"].endswith(f"| {found['BX_ratio']:.4g} | {found['BX_ratio_held_out']:.4g} |")
    assert rows["random B (baseline)"].endswith(f"| {found['random']:.4g} | {found['random']:.4g} |")
    assert f"{found['optimum']:.4g}" in rows["optimum of this rank"]
    assert "**Trained:** no" in text
    assert "Forgetting" not in text


def test_without_calibration_there_is_no_ratio(bases: Path, tmp_path: Path) -> None:
    make(bases, tmp_path / "out", "lora", calib_dataset=None)
    assert "Not calibrated" in text_of(tmp_path / "out")
    assert "random B" not in text_of(tmp_path / "out")


def test_on_the_hub_the_base_is_named_with_its_revision(bases: Path, tmp_path: Path) -> None:
    meta = on_hub(make(bases, tmp_path / "out").meta)
    card = ModelCard(card_of(meta))
    assert card.data.base_model == "org/name"
    assert "base_model:adapter:org/name" in card.data.tags
    assert f'AutoModelForCausalLM.from_pretrained("org/name", revision="{"c" * 40}")' in card.text


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_card_and_the_same_bytes_of_everything_else(
    method: str, bases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [contents(make(bases, tmp_path / name, method).folder) for name in ("one", "two")]
    monkeypatch.setattr("subspacelab.nullspace.building.card_of", lambda meta: "another card")
    other = contents(make(bases, tmp_path / "three", method).folder)
    assert made[0] == made[1]
    assert made[0].pop(CARD) != other.pop(CARD)
    assert made[0] == other, "the card decides nothing but itself"
    assert "random B (baseline)" in made[1][CARD].decode()


def test_the_lines_of_the_card_load_the_adapter(bases: Path, tmp_path: Path) -> None:
    make(bases, tmp_path / "out")
    (code,) = (part.split("```")[0] for part in text_of(tmp_path / "out").split("```python\n")[1:])
    lines = [line for line in code.splitlines() if line]
    assert len(lines) == 4
    given = {"path/to/llama": str(bases / "llama"), "path/to/this/folder": str(tmp_path / "out")}
    for place, folder in given.items():
        code = code.replace(place, folder)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["model"].peft_config["default"].r == 5


def test_a_trained_adapter_says_how_and_what_it_forgot(bases: Path, tmp_path: Path) -> None:
    make(bases, tmp_path / "built", "lora_null_v1")
    result = train_tiny(tmp_path / "built", tmp_path / "out")
    assert "7 steps on 20 rows of `rows`, learning rate 0.01" in text_of(result.folder)
    assert "B was trained too" in text_of(result.folder)
    rest = {name: data for name, data in contents(result.folder).items() if name != CARD}
    assert add_measured(result.folder, measured_knowledge(known(1.0, 0.0), known(0.75, 0.5)))
    assert "| old facts recalled exactly | 1 | 0.75 |" in text_of(result.folder)
    assert "not in it" not in text_of(result.folder), "what was not measured is left out"
    assert {name: data for name, data in contents(result.folder).items() if name != CARD} == rest
    assert is_own((result.folder / CARD).read_bytes())
    again = train_tiny(tmp_path / "built", tmp_path / "out")
    assert "| old facts recalled exactly | 1 | 0.75 |" in text_of(again.folder), "a finished training stays as it is"


def edit(folder: Path) -> None:
    (folder / CARD).write_text(text_of(folder).replace("# lora", "# Our lora"), encoding="utf-8")


def save_with_peft(folder: Path) -> None:
    """What `PeftModel.save_pretrained` does to a card that is there."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(read_meta(folder)["base"]["reference"])
    PeftModel.from_pretrained(base, folder).create_or_update_model_card(str(folder))


@pytest.mark.parametrize("change", [edit, save_with_peft])
def test_an_edited_card_is_kept_and_the_adapter_is_not_damaged(change: Any, bases: Path, tmp_path: Path) -> None:
    make(bases, tmp_path / "built")
    before = train_tiny(tmp_path / "built", tmp_path / "out").meta
    for folder in (tmp_path / "built", tmp_path / "out" / "ft"):
        change(folder)
    cards = [text_of(folder) for folder in (tmp_path / "built", tmp_path / "out" / "ft")]
    built = make(bases, tmp_path / "built")
    assert f"{CARD} was edited since and stays as it is" in built.notes
    assert train_tiny(tmp_path / "built", tmp_path / "out").meta == before
    assert not add_measured(tmp_path / "out" / "ft", [Measured("x", None, 1.0)])
    (tmp_path / "out" / "ft" / "adapter_model.safetensors").write_bytes(b"torn")
    assert train_tiny(tmp_path / "built", tmp_path / "out").meta == before, "a damaged adapter is made anew"
    assert [text_of(folder) for folder in (tmp_path / "built", tmp_path / "out" / "ft")] == cards


def test_an_adapter_without_a_card_is_as_good(bases: Path, tmp_path: Path) -> None:
    make(bases, tmp_path / "built")
    result = train_tiny(tmp_path / "built", tmp_path / "out")
    for folder in (tmp_path / "built", result.folder):
        (folder / CARD).unlink()
    assert train_tiny(tmp_path / "built", tmp_path / "out").meta == result.meta
    assert make(bases, tmp_path / "built").notes == []
    assert is_own((tmp_path / "built" / CARD).read_bytes())


def test_what_is_no_file_is_refused_before_the_work(bases: Path, tmp_path: Path) -> None:
    make(bases, tmp_path / "built")
    (tmp_path / "built" / CARD).unlink()
    (tmp_path / "built" / CARD).mkdir()
    (tmp_path / "built" / CARD / "mine").touch()
    with pytest.raises(ValueError, match=r"README\.md: a folder"):
        make(bases, tmp_path / "built")
    assert (tmp_path / "built" / CARD / "mine").exists()


def test_no_name_breaks_out_of_the_card(bases: Path, tmp_path: Path) -> None:
    meta = make(bases, tmp_path / "out").meta
    bad = 'x"`|\n# Title\n<script>'
    meta |= {"base": meta["base"] | {"reference": f"/home/me/{bad}"}}
    meta["calibration"] |= {"calib_dataset": bad}
    text = ModelCard(card_of(meta)).text
    assert "\n# Title" not in text
    assert "<script>" not in text
    assert "/home/me" not in text


@pytest.mark.parametrize("text", ["", "a\n", "a\n\n\n", "---\nx: 1\n---\nö <!-- x -->"])
def test_a_signature_holds_for_every_byte(text: str, tmp_path: Path) -> None:
    card = signed(text)
    assert is_own(card)
    assert not is_own(text.encode())
    for i in range(0, len(card), 7):
        assert not is_own(card[:i] + bytes([card[i] ^ 1]) + card[i + 1 :])
    assert not is_own(card + b"\n")
    assert not is_own(card[:-1])
    assert write_card(tmp_path, text)
    assert edited_card(tmp_path) is None
    (tmp_path / CARD).write_bytes(b"\xff\xfe not UTF-8")
    assert edited_card(tmp_path) == b"\xff\xfe not UTF-8"
    assert not write_card(tmp_path, text)
