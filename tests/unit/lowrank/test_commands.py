"""`subspacelab lowrank train`, `compare` and `visualize` as a person types them."""

import os
from collections.abc import Iterator
from datetime import datetime, tzinfo
from pathlib import Path

import pytest
from tests.unit.lowrank.caches import write_random_cache
from tests.unit.lowrank.trainings import contents

from subspacelab.cli import main
from subspacelab.core.files import read_json
from subspacelab.core.ownership import MANIFEST
from subspacelab.lowrank import logging as run_log

PICTURES = {"train_val_loss_comparison.png", "loss_curves.png", "error_heatmap.png", "B_row_norms.png"}
MODEL = {"best_model.safetensors", "best_model.json", "best_state.safetensors", "last.safetensors", "history.json"}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a cache in `features`."""
    monkeypatch.chdir(tmp_path)
    write_random_cache(tmp_path / "features", pictures=True)
    return tmp_path


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as e:
        main(["lowrank", *arguments])
    return int(e.value.code or 0)


def train(*more: str) -> int:
    quick = ("--features", "features", "--rank", "4", "--epochs", "2", "--batch-size", "4", "--device", "cpu")
    return run("train", *quick, "--no-track", *more)


def stored_settings(arch: str) -> dict:
    from subspacelab.lowrank.state import read_training

    return read_training(Path("results") / arch / "last.safetensors").job["settings"]


def test_training_writes_model_pictures_and_log(place: Path, capsys: pytest.CaptureFixture) -> None:
    assert train("--arch", "symmetric", "--lr", "1e-3") == 0
    assert {path.name for path in (place / "results" / "ResMLP").iterdir()} == PICTURES | MODEL
    for name in PICTURES:
        assert (place / "results" / "ResMLP" / name).read_bytes().startswith(b"\x89PNG")
    assert "ResMLP" in capsys.readouterr().out
    (log,) = (place / "log").iterdir()
    assert log.name.startswith("logs_")
    assert {path.name for path in log.iterdir()} == {"config.json", "training.log", "final_summary.json"}
    config = read_json(log / "config.json")
    wanted = {"arch": "ResMLP", "rank": 4, "seed": 42, "lr": 1e-3, "epochs": 2, "features": "features", "resume": False}
    assert config.items() >= wanted.items()
    lines = (log / "training.log").read_text().splitlines()
    assert [line.split()[1:3] for line in lines] == [["epoch", "1"], ["epoch", "2"]]
    assert all("val_mse=" in line for line in lines)
    summary = read_json(log / "final_summary.json")
    assert summary["history"] == read_json(place / "results" / "ResMLP" / "history.json")
    assert (summary["epoch"], summary["finished"]) == (2, True)


def test_two_trainings_begun_in_one_second_have_a_log_each(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Noon(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> "Noon":
            return cls(2026, 1, 2, 12, 0, 0)

    monkeypatch.setattr(run_log, "datetime", Noon)
    for seed in (1, 2):
        with run_log.open_run_log({"seed": seed}, lambda metrics, step: None) as (_, log):
            log({"loss": 0.5}, 1)
    logs = sorted((place / "log").iterdir())
    assert logs[0].name == "logs_20260102_120000"
    assert [read_json(log / "config.json")["seed"] for log in logs] == [1, 2]
    assert [len((log / "training.log").read_text().splitlines()) for log in logs] == [1, 1]


@pytest.mark.parametrize("spelling", ["-", "_"])
def test_every_flag_is_understood_in_both_spellings(spelling: str) -> None:
    values = {"lambda-B": 0.25, "lambda-ortho": 0.5, "weight-decay": 0.125, "batch-size": 5, "power-steps": 1}
    values |= {"patience": 7, "dropout": 0.3, "lr": 0.01, "start": "random", "normalisation": "layernorm"}
    flags = [part for key, value in values.items() for part in (f"--{key.replace('-', spelling)}", str(value))]
    assert train("--arch", "Sketch", *flags, f"--results{spelling}dir", "results") == 0
    settings = stored_settings("Sketch")
    assert {key: settings[key.replace("-", "_")] for key in values} == values


@pytest.mark.parametrize("spelling", ["-", "_"])
def test_the_allocators_flags_reach_it(spelling: str) -> None:
    values = {"init-warmup": 2, "final-warmup": 3, "mask-interval": 1, "keep-ratio": 0.5}
    flags = [part for key, v in values.items() for part in (f"--allocator-{key}".replace("-", spelling), str(v))]
    flags = ["--" + flag.lstrip("-_") if not flag[0].isdigit() else flag for flag in flags]
    assert train("--arch", "adaptive", f"--use{spelling}rank{spelling}allocator", *flags) == 0
    assert stored_settings("AdaLoRA")["allocator"] == {key.replace("-", "_"): v for key, v in values.items()}
    assert read_json(Path("results/AdaLoRA/history.json"))[-1]["live_rank"] == 2


def test_resume_adds_epochs(place: Path) -> None:
    assert train("--arch", "Sketch", "--start", "random") == 0
    best = read_json(place / "results" / "Sketch" / "best_model.json")["epoch"]
    assert train("--arch", "Sketch", "--resume", "--lr", "0.01") == 1  # asked for, and another
    assert train("--arch", "Sketch", "--resume", "--epochs", "3") == 0  # not asked for: --start
    assert len(read_json(place / "results" / "Sketch" / "history.json")) == best + 3
    assert stored_settings("Sketch")["start"] == "random"  # the settings are those of the first training


@pytest.mark.slow
def test_comparing_and_seeing(place: Path, capsys: pytest.CaptureFixture) -> None:
    for arch in ("LowRankProjMLP", "Sketch"):
        assert train("--arch", arch) == 0
    capsys.readouterr()
    common = ("--features", "features", "--rank", "4", "--results_dir", "results", "--no-track")
    assert run("compare", *common) == 0
    said = capsys.readouterr().out
    for words in ("SVD", "MLP", "Sketch", "PCA sketch", "random basis", "Rank 4 of 12", "best epoch", "cosine change"):
        assert words in said
    assert "standard deviation over the pictures" in " ".join(said.split())
    comparison = place / "results" / "comparison"
    written = {"comparison.csv", "rate_distortion.csv", "metrics.json"}
    written |= {"svd_nn_comparison.png", "task_iou.png", "rate_distortion.png"}
    assert {path.name for path in comparison.iterdir()} == written | {MANIFEST}
    assert run("compare", *common, "--arch", "MLP", "--arch", "Sketch", "--raw-inputs", "--output-dir", "raw") == 0
    assert read_json(place / "raw" / "metrics.json")["normalisation"] == "none"
    capsys.readouterr()
    assert run("visualize", *common, "--image-idx", "1", "--channels", "2") == 0
    names = ["channels_1.png", "errors_1.png", "overlay_1.png", "rank_curve.png"]
    assert capsys.readouterr().out.split() == [f"results/pictures/{name}" for name in names]
    assert {path.name for path in (place / "results" / "pictures").iterdir()} == {*names, "rank_curve.json", MANIFEST}


@pytest.mark.slow
def test_a_report_replaces_its_own_files_only(place: Path, capsys: pytest.CaptureFixture) -> None:
    assert train("--arch", "Sketch") == 0
    common = ("--features", "features", "--rank", "4", "--no-track")
    for command, picture in (("compare", "svd_nn_comparison.png"), ("visualize", "rank_curve.png")):
        assert run(command, *common, "--output-dir", "own") == 0
        before = contents(place / "own")
        for refused, words in (
            (
                (*common, "--arch", "Sketch", "--output-dir", "own"),
                ": holds a result of arch=[], this one",
            ),
            ((*common, "--output-dir", "features"), "features: is, or lies within, the input features"),
            ((*common, "--output-dir", "results/Sketch"), "is, or lies within, the input results/Sketch"),
        ):
            capsys.readouterr()
            assert run(command, *refused) == 1
            assert words in capsys.readouterr().err
        assert contents(place / "own") == before
        (place / "theirs").mkdir(exist_ok=True)
        (place / "theirs" / picture).write_text("mine")
        assert run(command, *common, "--output-dir", "theirs") == 1
        assert f"theirs/{picture}: not written by this command" in capsys.readouterr().err
        assert (place / "theirs" / picture).read_text() == "mine"
    # A second picture stands beside the first, and what both have is written again.
    assert run("visualize", *common, "--image-idx", "1", "--output-dir", "own") == 0
    assert {"channels_0.png", "channels_1.png"} <= contents(place / "own").keys()


@pytest.mark.parametrize("command", ["train", "compare", "visualize"])
def test_a_folder_without_a_cache_is_one_line(command: str, capsys: pytest.CaptureFixture) -> None:
    assert run(command, "--features", "nowhere", "--no-track") == 1
    streams = capsys.readouterr()
    assert streams.err.count("\n") == 1
    assert "nowhere: no feature cache there" in streams.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--arch", "nosuch"], "no such architecture"),
        (["--rank", "13"], "rank: 13 of a [16, 12] matrix"),
        (["--lr", "-1"], "train.lr: must be greater than 0, got -1.0"),
        (["--use-rank-allocator", "--arch", "AdaLoRA"], "do not fit into the 10 steps"),
        (["--resume"], "nothing to resume"),
    ],
)
def test_what_does_not_fit_is_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture) -> None:
    assert train(*arguments) == 1
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not Path("results").exists()


@pytest.fixture
def tracked(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The store of a repository of its own."""
    before = dict(os.environ)
    (place / ".git").mkdir()
    monkeypatch.setenv("TRACKING", "on")
    yield f"sqlite:///{place}/mlruns/mlflow.db"
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.slow
def test_a_tracked_training_has_curves_pictures_and_a_model_that_answers(place: Path, tracked: str) -> None:
    quick = ("--features", "features", "--rank", "4", "--epochs", "2", "--batch-size", "4", "--device", "cpu")
    assert run("train", "--arch", "Sketch", *quick) == 0
    import mlflow
    import numpy as np
    import torch

    from subspacelab.lowrank.state import load_model

    client = mlflow.MlflowClient(tracked)
    experiment = client.get_experiment_by_name("lowrank").experiment_id
    (recorded,) = client.search_runs([experiment])
    history = read_json(place / "results" / "Sketch" / "history.json")
    curve = client.get_metric_history(recorded.info.run_id, "train_loss")
    assert [(m.step, m.value) for m in curve] == [(h["epoch"], h["train_loss"]) for h in history]
    assert recorded.data.params.items() >= {"arch": "Sketch", "rank": "4", "lambda_B": "0.0001"}.items()
    pictures = {Path(a.path).name for a in client.list_artifacts(recorded.info.run_id, "pictures")}
    assert pictures == PICTURES
    (logged,) = client.search_logged_models([experiment])
    assert logged.name == "lowrank_Sketch"
    folder = place / "mlruns" / "artifacts" / "models" / logged.model_id / "artifacts"
    x = np.random.default_rng(0).standard_normal((3, 16, 12)).astype(np.float32)
    with torch.inference_mode():
        expected = load_model(place / "results" / "Sketch").network.reconstruct(torch.from_numpy(x)).numpy()
    found = mlflow.pyfunc.load_model(str(folder)).predict(x)
    # The same network elsewhere in memory, where MKL may add in another order: float32 rounding.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
