"""The loop: names, order, what exists, what fails."""

import pytest

from subspacelab.cli import main
from subspacelab.experiments import sweep
from subspacelab.experiments.combinations import combine
from subspacelab.experiments.report import differing, fitting, print_sweep
from subspacelab.experiments.sweep import require_success, run_sweep, show_plan

TRIALS = combine(["rank=64,128,256"])


@pytest.fixture
def dvc(monkeypatch):
    """Stands for DVC: remembers its calls, and fails on rank 128."""
    calls: list[tuple[str, ...]] = []

    def run(*words: str) -> int:
        calls.append(words)
        return 255 if "rank=128" in words and words[1] == "run" else 0

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


def test_what_exists_is_left_out_or_removed_first(dvc):
    assert [o.status for o in run_sweep(TRIALS[:1], [], there=["rank=64"])] == ["there"]
    assert dvc == []
    assert [o.status for o in run_sweep(TRIALS[:1], [], there=["rank=64"], force=True)] == ["done"]
    assert [words[:2] for words in dvc] == [("exp", "remove"), ("exp", "run")]


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
    monkeypatch.setattr("subspacelab.experiments.dvc_process.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as end:
        main(["sweep", "-S", "rank=64"])
    assert end.value.code == 1
    assert capsys.readouterr().err == "error: dvc is not installed; pip install 'subspacelab[pipeline]'\n"
