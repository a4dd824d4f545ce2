"""`rotation compare` at the terminal: where it may write."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
from tests.unit.rotation.chains import chain_tensors, decompose_chain

from subspacelab.core.errors import SettingError
from subspacelab.core.ownership import MANIFEST
from subspacelab.rotation.commands import compare, parse_modules
from subspacelab.rotation.comparison import LINKS, SPECTRA, TABLES, Comparison
from subspacelab.rotation.plots import PICTURES

Folders = tuple[Path, Path, Path]
SETTINGS: dict[str, Any] = {
    "k": 4,
    "module": None,
    "seed": 42,
    "null_draws": 0,
    "null_models": None,
    "include": None,
    "exclude": None,
    "device": "cpu",
    "track": False,
}


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """A decomposed chain of four weights, to be read only."""
    return decompose_chain(tmp_path_factory.mktemp("few"), chain_tensors(), include=r"[kv]_proj")


@pytest.fixture(autouse=True)
def quick_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of a few bytes."""

    def draw(folder: Path, *_: Any) -> tuple[Path, ...]:
        pictures = tuple(folder / name for name in PICTURES)
        for picture in pictures:
            picture.write_bytes(picture.name.encode())
        return pictures

    monkeypatch.setattr("subspacelab.rotation.plots.draw_pictures", draw)


def run(chain: Folders, output_dir: Path, **settings: Any) -> None:
    base, stage1, stage2 = chain
    given = SETTINGS | settings
    compare(checkpoints=None, base=base, stage1=stage1, stage2=stage2, output_dir=output_dir, **given)


def state(folder: Path) -> dict[str, str]:
    """Every file below `folder` with its digest."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_the_same_comparison_replaces_its_own_files_and_no_other(few: Folders, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    run(few, tmp_path)
    first = state(tmp_path)
    assert set(first) == {*TABLES, *PICTURES, MANIFEST, "notes.txt"}
    (tmp_path / "layers.csv").unlink()
    run(few, tmp_path)
    assert state(tmp_path) == first
    assert str(tmp_path) not in (tmp_path / MANIFEST).read_text()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"k": 5}, "rank=4, this one is of rank=5"),
        ({"null_draws": 1}, "null=0, this one is of null=1"),
        ({"module": ["a=k_proj"]}, "matches no weight"),
        ({}, "base="),
    ],
)
def test_another_comparison_is_refused_before_any_work(
    few: Folders, tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    run(few, tmp_path)
    before = state(tmp_path)
    chain = few if settings else (few[1], few[1], few[2])
    with pytest.raises(ValueError) as e:
        run(chain, tmp_path, **settings)
    assert said in str(e.value)
    assert "\n" not in str(e.value)
    assert state(tmp_path) == before


@pytest.mark.parametrize("name", ["layers.csv", "metrics.json", "spectra.png"])
def test_files_of_others_are_refused_and_kept(few: Folders, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=f"{name}: not written by this command"):
        run(few, tmp_path)
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("inside", [".", "report"])
@pytest.mark.parametrize("role", [0, 2])
def test_the_inputs_are_no_place_for_output(few: Folders, role: int, inside: str) -> None:
    before = state(few[role])
    with pytest.raises(ValueError, match="is, or lies within, the input"):
        run(few, few[role] / inside)
    assert state(few[role]) == before


def test_a_group_is_named_once() -> None:
    assert parse_modules(["a=x,y", "b=z=1"]) == {"a": "x,y", "b": "z=1"}
    with pytest.raises(ValueError, match="'a' is given twice"):
        parse_modules(["a=x", "a=y"])


def test_checkpoints_are_compared_without_factors(few: Folders, tmp_path: Path) -> None:
    stored = [str(few[0].parents[1] / "checkpoints" / name) for name in ("base", "rl_stage1", "rl_stage2")]
    given = {"include": r"k_proj", "base": None, "stage1": None, "stage2": None}
    settings: dict[str, Any] = SETTINGS | given
    compare(checkpoints=stored[:2], output_dir=tmp_path / "two", **settings)
    tables = {*TABLES, LINKS, SPECTRA, MANIFEST}
    assert set(state(tmp_path / "two")) >= tables
    found = Comparison.load(tmp_path / "two")
    assert found.names == ("base", "rl_stage1")
    assert found.layers["weight"].str.contains("k_proj").all()
    compare(checkpoints=stored, output_dir=tmp_path / "three", **settings)
    assert Comparison.load(tmp_path / "three").links["to"].unique().tolist() == ["stage1", "stage2"]
    with pytest.raises(ValueError, match="include='k_proj', this one is of include='v_proj'"):
        compare(checkpoints=stored[:2], output_dir=tmp_path / "two", **settings | {"include": "v_proj"})
    with pytest.raises(ValueError, match="is, or lies within, the input"):
        compare(checkpoints=stored[:2], output_dir=Path(stored[0]) / "report", **settings)


@pytest.mark.parametrize("given", [{"checkpoints": ["a", "b"]}, {"stage1": None}])
def test_checkpoints_or_three_folders(few: Folders, tmp_path: Path, given: dict[str, Any]) -> None:
    folders = dict(zip(("base", "stage1", "stage2"), few, strict=True)) | {"checkpoints": None}
    with pytest.raises(SettingError, match=r"give checkpoints A B \[C ...\], or all of --base"):
        compare(output_dir=tmp_path, **SETTINGS | folders | given)
