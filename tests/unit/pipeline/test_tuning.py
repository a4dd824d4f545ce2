"""A search: what is drawn, told, given up, failed, left by a killed process and taken up."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import optuna
import pytest

from subspacelab.core.files import write_json
from subspacelab.pipeline import search_space
from subspacelab.pipeline.search_space import Metric, as_trial, find_metric, parse_axes, require_stage
from subspacelab.pipeline.sweep import Trial
from subspacelab.pipeline.tuning import Commands, Search, grid_size, importances, open_study, show_plan

LR = parse_axes(["lr=loguniform:1e-5,1e-1"])
GRID = parse_axes(["rank=choice:1,2,4", "seed=choice:7,8"])


class Files:
    """Trials whose process writes its learning rate to a file; `slow` ones say first that they run, and wait."""

    def __init__(self, slow: Sequence[int] = (), broken: Sequence[int] = ()) -> None:
        self.slow, self.broken, self.began = slow, broken, []

    def name(self, number: int, trial: Trial) -> str:
        return f"{number}"

    def command(self, name: str, trial: Trial) -> list[str]:
        self.began.append(name)
        code = f"import pathlib, sys, time; pathlib.Path('{name}.at').touch(); "
        code += "time.sleep(60); " * (int(name) in self.slow) + "sys.exit(3); " * (int(name) in self.broken)
        return [sys.executable, "-c", f"{code}pathlib.Path('{name}').write_text('{trial.settings[0].value}')"]

    def value(self, name: str) -> float | None:
        return float(Path(name).read_text()) if Path(name).exists() else None

    def apply(self, name: str, trial: Trial) -> str:
        return f"cat {name}"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("subspacelab.pipeline.tuning.POLL", 0.02)


def search(files: Files, total: int, axes=LR, jobs: int = 1, watch=None, **how) -> optuna.Study:
    study = open_study("s", None, axes=axes, job="j", direction="minimize", **how)
    Search(study, axes, files, files.value, total, watch, quiet=True).run(jobs)
    return study


def states(study: optuna.Study) -> list[str]:
    return [trial.state.name for trial in study.trials]


def test_trials_are_told_their_values_and_a_second_call_adds_what_is_missing():
    study = search(Files(), 3)
    assert states(study) == ["COMPLETE"] * 3
    first = study.trials
    assert [t.value for t in first] == [float(as_trial(LR, t.params).settings[0].value) for t in first]
    files = Files()
    second = search(files, 5)
    assert files.began == ["3", "4"]
    assert [t.params for t in second.trials[:3]] == [t.params for t in first]
    assert len({t.params["lr"] for t in second.trials}) == 5  # a sampler that is taken up does not begin anew


def test_two_at_a_time_run_all_trials_once():
    files = Files()
    assert states(search(files, 6, jobs=2)) == ["COMPLETE"] * 6
    assert sorted(files.began) == sorted(map(str, range(6)))


def test_a_trial_that_fails_is_told_so_and_stops_no_other(capfd):
    assert states(search(Files(broken=[1]), 3)) == ["COMPLETE", "FAIL", "COMPLETE"]
    assert "[2 of 3] 1: failed with exit code 3; going on" in capfd.readouterr().err


def test_a_result_that_is_there_is_not_made_again():
    Path("0").write_text("0.25")
    files = Files()
    assert search(files, 1).best_value == 0.25
    assert files.began == []


def test_a_hopeless_trial_is_given_up_and_its_process_ended():
    began = time.monotonic()
    worst = {str(n): [0.1] * 5 for n in range(6)} | {"6": [9.0] * 5}
    study = search(Files(slow=[6]), 7, watch=worst.get, pruner="median")
    assert states(study) == ["COMPLETE"] * 6 + ["PRUNED"]
    assert not Path("6").exists()
    assert time.monotonic() - began < 30


KILLED = """
import sys; sys.path.insert(0, {tests!r})
from test_tuning import LR, Files, Search, open_study
study = open_study("s", None, axes=LR, job="j", direction="minimize")
files = Files(slow=[2])
Search(study, LR, files, files.value, 5, quiet=True).run(1)
"""


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_search_goes_on_with_the_trial_that_it_was_at(sign):
    code = KILLED.format(tests=str(Path(__file__).parent))
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL, start_new_session=True)
    while not Path("2.at").exists():
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, sign)
    process.wait()
    left = open_study("s", None, axes=LR, job="j", direction="minimize")
    assert states(left) == ["COMPLETE", "COMPLETE", "RUNNING"]
    files = Files()
    study = search(files, 5)
    assert states(study) == ["COMPLETE"] * 5
    assert files.began == ["2", "3", "4"]
    assert study.trials[2].params == left.trials[2].params


def test_a_grid_is_all_combinations_once():
    study = search(Files(), grid_size(GRID), axes=GRID, sampler="grid")
    assert sorted((t.params["rank"], t.params["seed"]) for t in study.trials) == [
        (rank, seed) for rank in "124" for seed in "78"
    ]
    assert set(importances(study)) <= {"rank", "seed"}
    with pytest.raises(ValueError, match="takes choices alone; lr has none"):
        search(Files(), 1, axes=LR, sampler="grid")


def test_a_search_is_not_taken_up_for_another():
    search(Files(), 1)
    with pytest.raises(ValueError, match="search 's' is of j; give this one another `name`"):
        open_study("s", None, axes=LR, job="other", direction="minimize")
    with pytest.raises(ValueError, match="`storage` cannot be used"):
        open_study("s", "sqlite:////no/such/folder/x.db", axes=LR, job="j", direction="minimize")


def test_a_command_names_its_trial_and_its_values():
    tried = Commands(["lowrank", "train", "--results-dir", "out/{trial}"], "lr")
    assert show_plan(LR, tried, 4)[-1] == "subspacelab lowrank train --results-dir out/lr-0 --lr 1e-5"
    assert tried.apply("lr-2", as_trial(LR, {"lr": 0.00123456789})).endswith("out/lr-2 --lr 0.00123457")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("lr", "is not of the form key=KIND:values"),
        ("lr=normal:0,1", "KIND is one of"),
        ("lr=uniform:0", "takes two numbers"),
        ("lr=uniform:a,b", "takes two numbers"),
        ("lr=uniform:2,1", "low must be below high"),
        ("lr=uniform:0,inf", "both finite"),
        ("lr=uniform:nan,1", "low must be below high"),
        ("lr=loguniform:0,1", "and above 0"),
        ("n=int:1.5,3", "takes two numbers"),
        ("n=choice:1,1", "or one twice"),
        ("n=choice:", "an empty value"),
    ],
)
def test_a_bad_range_is_one_line(text, why):
    with pytest.raises(ValueError, match=why):
        parse_axes([text])


def test_a_parameter_is_searched_once_and_something_is():
    with pytest.raises(ValueError, match="-S a is given twice"):
        parse_axes(["a=int:1,2", "a=int:1,3"])
    with pytest.raises(ValueError, match="nothing to search over"):
        parse_axes([])


def test_a_metric_is_found_by_the_parts_that_tell_it():
    write_json(Path("reports/lowrank/metrics.json"), {"cosine_SVD": 0.9})
    write_json(Path("reports/lowrank/details.json"), {"methods": {"Sketch": {"cosine": {"mean": 0.8, "std": 0.1}}}})
    write_json(Path("reports/norms/metrics.json"), {"a": 1.0, "b": {"cosine": 2.0}})
    details = Path("reports/lowrank/details.json")
    assert find_metric("cosine_SVD").file == Path("reports/lowrank/metrics.json")
    assert find_metric("lowrank/Sketch/cosine") == Metric(details, "methods.Sketch.cosine.mean")
    assert find_metric("reports/lowrank/details.json:methods.Sketch.cosine.std").key.endswith("std")
    with pytest.raises(ValueError, match="metric 'IoU' is in no file of reports/"):
        find_metric("IoU")
    with pytest.raises(ValueError, match="is not told from"):
        find_metric("reports")


def test_a_stage_must_write_the_metric(monkeypatch, tmp_path):
    (tmp_path / "dvc.yaml").write_text(
        "stages:\n  train: {cmd: a, outs: [data/t]}\n"
        "  compare: {cmd: b, metrics: [reports/x.json: {cache: false}], outs: [reports/d.json]}\n"
    )
    monkeypatch.setattr(search_space, "DVC_FILE", tmp_path / "dvc.yaml")
    require_stage("compare", Metric(Path("reports/x.json"), "a"))
    require_stage("compare", Metric(Path("reports/d.json"), "a"))
    with pytest.raises(ValueError, match="written by stage compare, not by train; tune compare"):
        require_stage("train", Metric(Path("reports/x.json"), "a"))
    with pytest.raises(ValueError, match="dvc.yaml has no stage 'tarin'"):
        require_stage("tarin", Metric(Path("reports/x.json"), "a"))
