"""`subspacelab nullspace build` as a person types it."""

from pathlib import Path

import pytest
from tests.language_models import write_text, write_tiny_lm

from subspacelab.cli import main
from subspacelab.core.files import read_json


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_tiny_lm(tmp_path / "lm")
    write_text(tmp_path / "text.txt")
    return tmp_path


def build(*arguments: str) -> int:
    with pytest.raises(SystemExit) as e:
        main(
            [
                "nullspace",
                "build",
                "--model-id",
                "lm",
                "--save-path",
                "out",
                "--device",
                "cpu",
                "--no-track",
                *arguments,
            ]
        )
    return int(e.value.code or 0)


def test_flags_in_both_spellings(place: Path, capsys: pytest.CaptureFixture) -> None:
    dashes = ("--calib-dataset", "text.txt", "--calib-loader-size", "40", "--seq-len", "16", "--rank", "4")
    assert build(*dashes, "--targets", "q_proj", "--targets", "down_proj", "--batch-size", "4", "--seed", "3") == 0
    assert "lora_null_v2 of rank 4 on lm, in out" in capsys.readouterr().out
    first = read_json(place / "out" / "nullspace.json")
    assert len(first["targets"]) == 4
    assert (first["rank"], first["seed"], first["calibration"]["num_windows"]) == (4, 3, 35)
    underscores = [flag.replace("-", "_").replace("__", "--", 1) for flag in dashes]
    assert build(*underscores, "--targets", "q_proj", "--targets", "down_proj", "--batch_size", "4", "--seed", "3") == 0
    assert read_json(place / "out" / "nullspace.json") == first


def test_the_same_files_typed_otherwise_are_the_same_job_and_others_typed_alike_are_not(
    place: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = ("--calib-loader-size", "40", "--seq-len", "16", "--rank", "4", "--targets", "q_proj")
    assert build(*some, "--calib-dataset", "text.txt") == 0
    first = read_json(place / "out" / "nullspace.json")
    assert (first["job"]["base"], first["job"]["calib_dataset"]) == ("../lm", "../text.txt")
    for typed in (("./lm/", "./text.txt"), (str(place / "lm"), str(place / "text.txt"))):
        assert build(*some, "--model-id", typed[0], "--calib-dataset", typed[1]) == 0, capsys.readouterr().err
        assert read_json(place / "out" / "nullspace.json") == first  # a training of it goes on
    (place / "elsewhere").mkdir()
    write_text(place / "elsewhere" / "text.txt", seed=1)
    monkeypatch.chdir(place / "elsewhere")
    others = ("--model-id", "../lm", "--save-path", "../out", "--calib-dataset", "text.txt")
    assert build(*some, *others) == 1
    assert "calib_dataset='../text.txt', this one is of calib_dataset='../elsewhere" in capsys.readouterr().err


def test_mistakes_are_one_line(place: Path, capsys: pytest.CaptureFixture) -> None:
    assert build("--calib-dataset", "text.txt", "--calib-loader-size", "9", "--seq-len", "16", "--rank", "4") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: 128 calibration tokens for ")
    assert "`allow_few_tokens`" in error
    assert error.count("\n") == 1
    assert build("--method", "magic") == 1
    assert "allowed are lora_null_v2" in capsys.readouterr().err
    assert not (place / "out").exists()


def test_methods_that_need_no_text_ask_for_none(place: Path, capsys: pytest.CaptureFixture) -> None:
    assert build("--method", "lora", "--rank", "4") == 0
    assert "not calibrated" in capsys.readouterr().out
