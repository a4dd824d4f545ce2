"""The loop: names, order, what exists, what fails."""

import re
from pathlib import Path

import pytest

from subspacelab.cli import main
from subspacelab.pipeline import sweep
from subspacelab.pipeline.display import differing, fitting, print_sweep
from subspacelab.pipeline.dvc_process import require_usable_path
from subspacelab.pipeline.sweep import combine, require_success, run_sweep, show_plan

TRIALS = combine(["rank=64,128,256"])


@pytest.fixture
def kept(monkeypatch):
    """Stands for git: experiment to commit."""
    commits: dict[str, str] = {}
    monkeypatch.setattr(sweep, "experiment_commit", commits.get)
    monkeypatch.setattr(sweep, "restore_experiment", commits.__setitem__)
    return commits


@pytest.fixture
def dvc(monkeypatch, kept):
    """Stands for DVC: remembers its calls, fails on rank 128, and loses rank 512 without a word."""
    calls: list[tuple[str, ...]] = []

    def run(*words: str) -> int:
        calls.append(words)
        name = words[-1] if words[1] == "remove" else words[4]
        if words[1] == "remove":
            del kept[name]
        elif name not in ("rank=128", "rank=512"):
            kept[name] = "new"
        return 255 if name == "rank=128" and words[1] == "run" else 0

    monkeypatch.setattr(sweep, "dvc_run", run)
    return calls


def test_one_failure_does_not_stop_the_others_and_is_named_at_the_end(dvc, capsys):
    outcomes = run_sweep(TRIALS, ["train"], there=[])
    assert [o.status for o in outcomes] == ["done", "failed", "done"]
    assert dvc[0] == ("exp", "run", "--temp", "-n", "rank=64", "-S", "rank=64", "train")
    progress = capsys.readouterr().err
    assert "[1 of 3] rank=64\n" in progress
    assert "[2 of 3] rank=128: failed with exit code 255" in progress
    with pytest.raises(ValueError, match="1 of 3 experiments failed: rank=128"):
        require_success(outcomes)
    require_success(outcomes[:1])


def test_done_means_that_the_experiment_is_there(dvc, capsys):
    assert [o.status for o in run_sweep(combine(["rank=512"]), [], there=[])] == ["failed"]
    assert "rank=512: failed: DVC kept no experiment of that name" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["rank=128", "rank=512"])
def test_an_experiment_outlives_its_failed_successor(dvc, kept, name):
    kept[name] = "old"
    assert [o.status for o in run_sweep(combine([name]), [], there=[name], force=True)] == ["failed"]
    assert kept == {name: "old"}


def test_what_exists_is_left_out_or_removed_first(dvc, kept):
    kept["rank=64"] = "old"
    assert [o.status for o in run_sweep(TRIALS[:1], [], there=["rank=64"])] == ["there"]
    assert dvc == []
    assert [o.status for o in run_sweep(TRIALS[:1], [], there=["rank=64"], force=True)] == ["done"]
    assert [words[:2] for words in dvc] == [("exp", "remove"), ("exp", "run")]
    assert kept == {"rank=64": "new"}


@pytest.mark.parametrize(
    ("folder", "sign"), [("/a:b", "':'"), ("/${HOME}", "'$'"), ("/%(x)s", "'%('"), ("/\udcff", r"'\udcff'")]
)
def test_paths_that_dvc_cannot_take_are_named_before_anything_runs(folder, sign):
    with pytest.raises(ValueError, match=re.escape(sign)):
        require_usable_path(Path(folder))
    require_usable_path(Path("/\u6211 My%20Project/a#b/it's"))


def test_the_plan_is_what_a_shell_would_run():
    plan = show_plan(combine(["a=[x, y],z"]), ["train"], there=["a=z"])
    name = combine(["a=[x, y]"])[0].name
    assert plan == [
        f"dvc exp run --temp -n {name} -S 'a=[x, y]' train",
        "# dvc exp run --temp -n a=z -S a=z train  # exists",
    ]


def test_the_table_has_a_row_per_trial_and_the_metrics_that_differ(dvc, capsys):
    outcomes = run_sweep(TRIALS, [], there=[])
    print_sweep(outcomes, {"rank=64": {"same": 1.0, "cosine": 0.5}, "rank=256": {"same": 1.0, "cosine": 0.75}})
    table = capsys.readouterr().out
    assert "same" not in table
    rows = {line.split()[0]: line.split()[1:] for line in table.splitlines() if line.strip().startswith("rank=")}
    assert rows == {"rank=64": ["done", "0.5"], "rank=128": ["failed", "-"], "rank=256": ["done", "0.75"]}


def test_of_a_single_one_all_metrics_differ():
    assert differing([{"a": 1.0, "b": 2.0}]) == ["a", "b"]
    assert differing([{"a": 1.0}, {"a": 1.0, "b": 2.0}]) == ["b"]


def test_as_many_columns_as_fit():
    assert fitting(["abc", "de", "f"], 9) == ["abc", "de"]
    assert fitting(["abc", "de", "f"], 12) == ["abc", "de", "f"]
    assert fitting(["abc", "de"], 0) == ["abc"]
    assert fitting([], 9) == []


def test_without_dvc_one_line_says_so(monkeypatch, capsys):
    monkeypatch.setattr("subspacelab.pipeline.dvc_process.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as end:
        main(["sweep", "-S", "rank=64"])
    assert end.value.code == 1
    assert capsys.readouterr().err == "error: dvc is not installed; pip install '.[pipeline]' in the clone\n"
