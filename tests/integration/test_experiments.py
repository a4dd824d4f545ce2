"""Real DVC experiments of a tiny pipeline, swept, served from the run cache, and linked to their runs."""

import shutil
import subprocess

import pytest
from tests.integration.toy_pipeline import add_score, dvc_in, run_in
from tests.stores import SRC

from subspacelab.cli import main
from subspacelab.pipeline.dvc_process import experiment_commit
from subspacelab.pipeline.experiments import read_experiments
from subspacelab.pipeline.sweep import combine, run_sweep

pytestmark = pytest.mark.slow


@pytest.fixture
def command(pipeline, monkeypatch, capfd):
    """Runs a command in the pipeline, of which the baseline has run; returns exit code, and rows by first cell."""
    monkeypatch.setenv("PYTHONPATH", str(SRC))
    dvc_in(pipeline, "repro")
    run_in(pipeline, "git", "add", "-A")
    run_in(pipeline, "git", "commit", "-qm", "baseline")

    def run(*words: str):
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main(words)
        rows = [line.split() for line in capfd.readouterr().out.splitlines() if line.strip()]
        return end.value.code or 0, {row[0]: row[1:] for row in rows}

    return run


def rev(place, name: str) -> str:
    """An experiment's commit, as git has it."""
    listed = subprocess.run(["git", "for-each-ref", "refs/exps"], cwd=place.root, capture_output=True, text=True).stdout
    return next(line.split()[0] for line in listed.splitlines() if line.endswith(f"/{name}"))


def test_a_sweep_runs_once_and_sync_links_what_the_run_cache_served(pipeline, command):
    before = (pipeline.root / "params.yaml").read_bytes()
    code, rows = command("sweep", "-S", "rank=16,32")
    assert (code, rows["rank=16"][0], rows["rank=32"][0]) == (0, "done", "done")
    code, rows = command("sweep", "-S", "rank=16,32")
    assert (code, rows["rank=16"][0], rows["rank=32"][0]) == (0, "there", "there")
    assert len(pipeline.runs("rotation")) == 2 * 3  # two stages each, the baseline's too
    assert (pipeline.root / "params.yaml").read_bytes() == before

    dvc_in(pipeline, "exp", "run", "--temp", "-n", "again", "-S", "rank=16")
    assert len(pipeline.runs("rotation")) == 2 * 3  # no process, so no run of this name
    _, rows = command("runs", "sync")
    assert rows["again"] == ["0", "2", "0", "rank=16", "2", "-"]
    assert rows["rank=32"] == ["2", "0", "0", "-", "3", "-"]
    makers = [r.data.tags for r in pipeline.runs("rotation") if r.data.tags.get("dvc.exp.name") == "rank=16"]
    assert {tags["dvc.exp.also"] for tags in makers} == {"again"}
    assert {tags["dvc.exp.rev"] for tags in makers} == {rev(pipeline, "rank=16")}

    _, rows = command("runs", "sync", "--create-missing")
    assert {row[-2] for name, row in rows.items() if name in ("again", "rank=16", "rank=32")} == {"0"}  # linked once
    (made,) = [r for r in pipeline.runs("pipeline") if r.data.tags.get("dvc.from_run_cache") == "true"]
    assert rows["again"][-1] == made.info.run_id[:8]
    assert made.data.tags["dvc.exp.rev"] == rev(pipeline, "again")
    assert made.data.params == {"rank": "16"}
    assert made.data.metrics == {"make.done": 1.0, "read.done": 1.0}
    assert made.info.status == "FINISHED"
    before = len(pipeline.runs("pipeline"))
    command("runs", "sync", "--create-missing")
    assert len(pipeline.runs("pipeline")) == before


def test_a_search_of_experiments_has_a_run_with_a_child_for_each_trial(pipeline, command):
    add_score(pipeline)
    dvc_in(pipeline, "repro")
    run_in(pipeline, "git", "add", "-A")
    run_in(pipeline, "git", "commit", "-qm", "score")
    search = ("tune", "score", "-S", "rank=int:1,99", "--metric", "score", "--jobs", "2", "--name", "s", "--trials")
    code, rows = command(*search, "2")
    assert (code, rows["0"][-1], rows["1"][-1]) == (0, "complete", "complete")
    code, rows = command(*search, "3")
    tried = {rows[n][0]: float(rows[n][1]) for n in "012"}
    assert all(score == -int(rank) for rank, score in tried.items())
    best = max(tried, key=int)
    assert f"dvc exp apply rank={best}" in " ".join(rows["best"])
    assert {e.name for e in read_experiments()} == {f"rank={rank}" for rank in tried}

    runs = {run.info.run_name: run for run in pipeline.runs("tune")}
    assert set(runs) == {"s", *(f"rank={rank}" for rank in tried)}
    parent = runs.pop("s")
    assert (parent.info.status, parent.data.metrics) == ("FINISHED", {"score": tried[best]})
    for run in runs.values():
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.metrics["score"] == -int(run.data.params["rank"])
    pictures = pipeline.client().list_artifacts(parent.info.run_id)
    assert {"history.png", "importances.png"} < {picture.path for picture in pictures}


def test_dead_runs_are_ended_and_shown(place, monkeypatch, capsys):
    client = place.client()
    from subspacelab.tracking.context import process_tags

    experiment = client.create_experiment("rotation")
    dead = client.create_run(experiment, tags=process_tags() | {"pid": "999999999"}, run_name="gone")
    alive = client.create_run(experiment, tags=process_tags())
    with pytest.raises(SystemExit) as end:
        main(["runs", "reap"])
    assert not end.value.code
    shown = capsys.readouterr().out
    assert dead.info.run_id in shown
    assert alive.info.run_id not in shown
    assert [client.get_run(r.info.run_id).info.status for r in (dead, alive)] == ["KILLED", "RUNNING"]


def test_a_project_in_a_folder_of_any_letters(pipeline, monkeypatch):
    place = pipeline.root / "moved" / "\u6211 a%20b#c"
    shutil.copytree(pipeline.root, place, ignore=shutil.ignore_patterns("moved", "mlruns"))
    monkeypatch.chdir(place)
    monkeypatch.setenv("LC_ALL", "C")
    monkeypatch.setenv("PYTHONPATH", str(SRC))
    monkeypatch.setenv("TRACKING", "off")
    (trial,) = combine(["rank=9"])
    assert [o.status for o in run_sweep([trial], ["make"], there=[])] == ["done"]
    first = experiment_commit(trial.name)
    assert [o.status for o in run_sweep([trial], ["nosuch"], there=[trial.name], force=True)] == ["failed"]
    assert [e.rev for e in read_experiments()] == [first]
