"""`subspacelab nullspace train`, `verify` and `compare-stats` as a person types them."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import chdir
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tests.unit.nullspace.trainings import ROWS, contents, write_adapter_of, write_base
from tests.unit.nullspace.verifications import init_of, trained_of

from subspacelab.cli import main
from subspacelab.core.files import read_json
from subspacelab.core.ownership import MANIFEST
from subspacelab.data.instructions import write_instructions
from subspacelab.nullspace.commands import COMPARED
from subspacelab.nullspace.results import KEYS, write_stats

LAUNCHER = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
LAUNCHER += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
TRAIN = ["train", "--adapter", "built", "--data", "rows.jsonl", "--max-steps", "6", "--lr", "1e-2"]
TRAIN += ["--batch-size", "4", "--device", "cpu", "--no-track"]
VERIFY = ["verify", "--calib-dataset", "text.txt", "--calib-loader-size", "12", "--seq-len", "16"]
VERIFY += ["--max-activation-samples", "40", "--device", "cpu", "--no-track"]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as e:
        main(["nullspace", *arguments])
    return int(e.value.code or 0)


def prepare(place: Path) -> None:
    write_adapter_of(write_base(place), place / "built")
    write_instructions(place / "rows.jsonl", ROWS)


@pytest.mark.slow
def test_from_a_built_adapter_to_a_passed_gate(place: Path, capsys: pytest.CaptureFixture) -> None:
    prepare(place)
    assert run(*VERIFY, "--trained-model-path", "built", "--save-stats", "init.json") == 0
    assert "as it was built" in capsys.readouterr().out
    assert run(*TRAIN, "--output-dir", "out") == 0
    said = capsys.readouterr().out
    assert 0 <= said.index("adapters reach") < said.index("A only, B frozen")  # how much, before it is trained
    assert run(*VERIFY, "--trained_model_path", "out/ft", "--save_stats", "trained.json") == 0
    said = capsys.readouterr().out
    assert "Reading" in said
    assert "times better than a random B" in said
    assert set(read_json(place / "trained.json")) == set(KEYS)
    assert read_json(place / "trained.json")["model_path"] == "out/ft"
    pair = ("--init-stats", "init.json", "--trained-stats", "trained.json", "--no-track")
    assert run("compare-stats", *pair, "--output-dir", "compared") == 0
    assert {p.name for p in (place / "compared").iterdir()} == {*COMPARED, MANIFEST}
    assert "0 fail" in capsys.readouterr().out
    assert run(*TRAIN, "--output-dir", "out") == 0, "a finished training is left as it is"
    assert run(*VERIFY, "--trained-model-path", "out") == 1
    assert "its adapter is out/ft" in capsys.readouterr().err


@pytest.mark.parametrize(("broken", "code"), [({}, 0), ({"B_weight_norm": 4.5}, 3), ({"ABX_ratio": 0.0}, 3)])
def test_the_gate_is_an_exit_code(place: Path, capsys: pytest.CaptureFixture, broken: dict, code: int) -> None:
    write_stats(place / "init.json", init_of())
    write_stats(place / "trained.json", trained_of(**broken))
    assert run("compare-stats", "--init-stats", "init.json", "--trained-stats", "trained.json", "--no-track") == code
    assert capsys.readouterr().out.count("failed: ") == 3 * bool(broken)


def test_bad_input_is_one_line_and_exit_code_1(place: Path, capsys: pytest.CaptureFixture) -> None:
    write_stats(place / "good.json", init_of())
    (place / "bad.json").write_text(json.dumps({"stats": []}))
    (place / "rows.jsonl").write_text('{"query": "a", "response": "b"}\n')
    pair = ("compare-stats", "--init-stats", "good.json", "--no-track", "--trained-stats")
    for arguments, said in (
        ((*pair, "bad.json"), "bad.json"),
        ((*pair, "none.json"), "no such file"),
        ((*VERIFY, "--trained-model-path", "out/ft"), "no adapter here"),
        ((*TRAIN, "--output-dir", "out"), "no adapter here"),
        ((*TRAIN, "--output-dir", "out", "--lr", "-1"), "train.lr: must be greater than 0, got -1.0"),
        ((*TRAIN, "--output-dir", "out", "--warmup-ratio", "2"), "train.warmup_ratio: must be less than or equal to 1"),
        ((*VERIFY, "--trained-model-path", "out", "--calib-loader-size", "0"), "verify.calib_loader_size: must be"),
    ):
        assert run(*arguments) == 1, said
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert said in error
        assert error.count("\n") == 1
    assert not (place / "out").exists()


@pytest.mark.slow
def test_two_processes_train_what_one_trains(place: Path) -> None:
    prepare(place)
    assert run(*TRAIN, "--output-dir", "one") == 0
    command = [*LAUNCHER, "-m", "subspacelab", "nullspace", *TRAIN, "--output-dir", "two"]
    done = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("B frozen") == 1  # one process speaks
    one, two = (load_file(place / name / "ft" / "adapter_model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        if "lora_A" in name:
            assert (two[name] == tensor).all(), name
        else:
            # Sums of halves round otherwise, and AdamW makes a step of a gradient near 0 whose sign flips.
            assert (two[name] - tensor).norm() < 0.02 * tensor.norm(), name
    first, second = (read_json(place / name / "ft" / "nullspace.json")["trained"] for name in ("one", "two"))
    assert second["final_loss"] == pytest.approx(first["final_loss"], rel=1e-3)
    assert second | {"final_loss": 0} == first | {"final_loss": 0}
    assert sorted(p.name for p in (place / "two").iterdir()) == ["ft"]


def test_statistics_replace_only_those_of_the_same_adapter_and_tokens(
    place: Path, capsys: pytest.CaptureFixture
) -> None:
    prepare(place)
    verify = (*VERIFY, "--trained-model-path", "built", "--save-stats")
    assert run(*verify, "stats.json") == 0
    first = (place / "stats.json").read_bytes()
    assert run(*verify, "stats.json") == 0
    assert (place / "stats.json").read_bytes() == first
    assert run(*verify, "./stats.json", "--calib-dataset", str(place / "text.txt")) == 0  # typed otherwise
    assert run(*verify, "stats.json") == 0
    (place / "mine.json").write_text('{"mine": 1}')
    shutil.copy(place / "text.txt", place / "other.txt")
    shutil.copytree(place / "built", place / "twin")
    others = (("--trained-model-path", "twin"), ("--seed", "5"), ("--seq-len", "15"), ("--calib-dataset", "other.txt"))
    before = contents(place)
    for arguments, said in (
        ((*verify, "mine.json"), "mine.json: no statistics of this version"),
        ((*verify, "built/nullspace.json"), "is, or lies within, the input built"),
        ((*verify, "lm/config.json"), "is, or lies within, the input"),
        ((*verify, "text.txt"), "is, or lies within, the input text.txt"),
        *(((*verify, "stats.json", *other), "stats.json: holds a result of") for other in others),
    ):
        capsys.readouterr()
        assert run(*arguments) == 1, said
        assert said in capsys.readouterr().err
        assert contents(place) == before
    with chdir(place / "twin"):
        elsewhere = ("--trained-model-path", "../built", "--calib-dataset", "../text.txt", "--save-stats")
        assert run(*VERIFY, *elsewhere, "../stats.json") == 1
    assert "of the adapter 'built', which does not exist from this folder; run it in the" in capsys.readouterr().err


def test_a_comparison_replaces_only_its_own_files(place: Path, capsys: pytest.CaptureFixture) -> None:
    write_stats(place / "init.json", init_of())
    write_stats(place / "trained.json", trained_of())
    pair = ("compare-stats", "--init-stats", "init.json", "--trained-stats", "trained.json", "--no-track")
    assert run(*pair, "--output-dir", "out") == 0
    first = contents(place / "out")
    assert run(*pair, "--output-dir", "out") == 0
    assert contents(place / "out") == first
    assert run(*pair, "--init-stats", str(place / "init.json"), "--output-dir", "./out/") == 0  # typed otherwise
    assert contents(place / "out") == first
    (place / "mine").mkdir()
    (place / "mine" / "before_after.png").write_bytes(b"holiday")
    assert run(*pair, "--output-dir", "mine") == 1
    assert "not written by this command" in capsys.readouterr().err
    assert contents(place / "mine") == {"before_after.png": b"holiday"}
