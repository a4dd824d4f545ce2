"""The smoke study in every mode in which DVC runs an experiment, and killed; then pages and notebooks on its results.

One file, and `--dist loadfile`: then one worker runs the study once for all of it.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from ruamel.yaml import YAML
from tests.repo.documents import NOTEBOOKS, ROOT, STUDIES, read_blocks
from tests.repo.test_dependencies import DRAWING, LONG

pytestmark = pytest.mark.slow

METHODS = ("lora", "lora_null_v2")
STAGES = {
    "scenes",
    "checkpoint_base",
    "checkpoint_rl_stage1",
    "checkpoint_rl_stage2",
    "compare_checkpoints",
    "decompose@base",
    "decompose@rl_stage1",
    "decompose@rl_stage2",
    "compare_rotations",
    "judge_updates",
    "cache_features",
    "train_lowrank@ResMLP",
    "train_lowrank@MLP",
    "train_lowrank@AdaLoRA",
    "train_lowrank@Sketch",
    "compare_lowrank",
    "visualize_lowrank",
    "corpus",
    "checkpoint_llm",
    *(f"{stage}_adapter@{method}" for stage in ("build", "train") for method in METHODS),
    *(f"verify_adapter@{method}-{state}" for method in METHODS for state in ("init", "trained")),
    "compare_stats",
    "compare_norms",
    *(f"analyze_norms@{checkpoint}" for checkpoint in ("base", "rl_stage1", "rl_stage2", "llm")),
    "report",
}
KILLED = "checkpoint_rl_stage1"  # as far as the killed pipeline goes: tests/faults kills every long stage
IDLE = ("continue_lowrank@", "measure_forgetting")  # without epochs and methods these stages have no run


def lock(clone) -> dict:
    return YAML(typ="safe").load(clone.path / "dvc.lock")["stages"]


def of_experiment(clone, name: str) -> dict:
    """Stage to run of one DVC experiment."""
    found = [r for r in clone.runs() if r.data.tags.get("dvc.exp.name") == name]
    return {r.data.tags["dvc.stage"]: r for r in found if "dvc.stage" in r.data.tags}


def by_repro(run) -> bool:
    return run.data.tags.get("dvc.mode") == "repro"


def test_repro_records_one_finished_run_per_stage_under_one_parent(smoke_clone):
    repro = [r for r in smoke_clone.runs() if r.data.tags.get("dvc.mode") == "repro"]
    stages = {r.data.tags["dvc.stage"]: r for r in repro if "dvc.stage" in r.data.tags}
    assert set(stages) == STAGES
    assert {r.info.status for r in repro} == {"FINISHED"}
    parents = {r.data.tags["mlflow.parentRunId"] for r in stages.values()}
    assert len(parents) == 1


def test_the_tags_of_a_run_hold_the_md5_of_its_outs(smoke_clone):
    tags = {r.data.tags["dvc.stage"]: r.data.tags for r in smoke_clone.runs() if "dvc.stage" in r.data.tags}
    stages = {name: stage for name, stage in lock(smoke_clone).items() if not name.startswith(IDLE)}
    locked = {(name, out["path"]): out["md5"] for name, stage in stages.items() for out in stage.get("outs", [])}
    assert {name for name, _ in locked} == STAGES
    for (stage, path), md5 in locked.items():
        assert tags[stage][f"dvc.out.{path}"] == md5


def test_a_second_repro_runs_nothing_and_git_stays_clean(smoke_clone):
    before = len(smoke_clone.runs())
    assert "up to date" in smoke_clone.run("dvc", "repro").stdout
    assert len(smoke_clone.runs()) == before
    assert smoke_clone.status() == ""


def test_curves_pictures_tables_and_models_are_in_the_store(smoke_clone):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{smoke_clone.path}/mlruns/mlflow.db")
    stages = {r.data.tags["dvc.stage"]: r.info.run_id for r in smoke_clone.runs() if "dvc.stage" in r.data.tags}
    assert len(client.get_metric_history(stages["checkpoint_base"], "loss")) > 1
    assert len(client.get_metric_history(stages["checkpoint_rl_stage1"], "held_out_iou")) > 1
    pictures = {
        a.path.removeprefix("pictures/") for a in client.list_artifacts(stages["compare_rotations"], "pictures")
    }
    drawn = ("rotation_mse_curves", "principal_angles", "spectra", "update_geometry", "null_scores")
    assert pictures == {f"{name}.png" for name in drawn}
    assert "layers.json" in {a.path for a in client.list_artifacts(stages["compare_rotations"])}
    assert "predicted_boxes.png" in {a.path for a in client.list_artifacts(stages["checkpoint_rl_stage2"])}
    curves = [m for m in client.get_run(stages["compare_rotations"]).data.metrics if "/" in m]
    assert curves
    models = client.search_logged_models([client.get_run(stages["checkpoint_base"]).info.experiment_id])
    assert {m.name for m in models} >= {"base", "rl_stage1", "rl_stage2"}
    training = stages["train_lowrank@AdaLoRA"]
    assert [m.value for m in client.get_metric_history(training, "live_rank")] == [128, 128]
    assert "loss_curves.png" in {a.path.removeprefix("pictures/") for a in client.list_artifacts(training, "pictures")}


def test_runs_say_what_they_read_and_models_are_registered(smoke_clone):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{smoke_clone.path}/mlruns/mlflow.db")
    stages = {r.data.tags["dvc.stage"]: r for r in smoke_clone.runs() if r.data.tags.get("dvc.mode") == "repro"}
    made = {out["path"]: out["md5"] for stage in lock(smoke_clone).values() for out in stage.get("outs", [])}
    for stage, wanted in {
        "train_lowrank@MLP": {"data/features"},
        "compare_rotations": {f"data/svd/{name}" for name in ("base", "rl_stage1", "rl_stage2")},
        "train_adapter@lora": {"data/checkpoints/llm", "data/corpus", "data/nullspace/init/lora"},
    }.items():
        found = {d.dataset.name: d.dataset for d in stages[stage].inputs.dataset_inputs}
        assert {name: d.digest for name, d in found.items()} == {name: made[name] for name in wanted}
    pictures = {d.dataset.name: d.dataset for d in stages["cache_features"].inputs.dataset_inputs}["data/scenes"]
    assert json.loads(pictures.profile)["num_rows"] > 1
    for name, metric in (("lowrank", "val_cosine"), ("nullspace", "geometric_mean"), ("grounding", "mean_iou")):
        versions = client.search_model_versions(f"name = '{name}-smoke'")
        best = client.get_model_version_by_alias(f"{name}-smoke", "best")
        values = {float(version.tags["headline.value"]) for version in versions}
        assert (best.tags["headline.metric"], float(best.tags["headline.value"])) == (metric, max(values))


def test_the_pipelines_run_is_named_and_described_for_a_reader(smoke_clone):
    (report,) = [r for r in smoke_clone.runs() if r.data.tags.get("dvc.stage") == "report" and by_repro(r)]
    parent = next(r for r in smoke_clone.runs() if r.info.run_id == report.data.tags["mlflow.parentRunId"])
    assert parent.info.run_name.startswith("smoke 20")
    note = parent.data.tags["mlflow.note.content"]
    assert "The pipeline on the study `smoke`" in note
    for study in ("checkpoints", "rotation", "lowrank", "nullspace", "norms"):
        assert f"### {study}" in note
    assert note.count("](get-artifact?") == 3
    described = [r for r in smoke_clone.runs() if by_repro(r) and "dvc.stage" in r.data.tags]
    assert all(r.data.tags["mlflow.note.content"] for r in described)


def test_the_report_is_an_artifact_of_the_pipelines_run(smoke_clone):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{smoke_clone.path}/mlruns/mlflow.db")
    (run,) = [r for r in smoke_clone.runs() if r.data.tags.get("dvc.stage") == "report"]
    for run_id in (run.info.run_id, run.data.tags["mlflow.parentRunId"]):
        assert "report.html" in {a.path for a in client.list_artifacts(run_id)}
    page = (smoke_clone.path / "reports" / "report.html").read_text()
    assert 'id="lowrank-maps"' in page
    assert "There are no results" not in page


def test_mlflow_and_dvc_have_the_same_headlines_and_they_fit_a_screen(smoke_clone):
    (shown,) = json.loads(smoke_clone.run("dvc", "metrics", "show", "--json").stdout).values()
    headlines = [(name, value) for file in shown["data"].values() for name, value in file["data"].items()]
    assert len(headlines) == len(dict(headlines)) <= 25
    of_repro = [r.data.tags for r in smoke_clone.runs() if r.data.tags.get("dvc.mode") == "repro"]
    ids = {tags["mlflow.parentRunId"] for tags in of_repro if "dvc.stage" in tags}
    (parent,) = [run.data for run in smoke_clone.runs() if run.info.run_id in ids]
    assert parent.metrics == pytest.approx(dict(headlines), rel=1e-6, abs=1e-6)


def test_plots_are_drawn_into_a_page_that_needs_no_network(smoke_clone, tmp_path):
    page = tmp_path / "plots"
    shown = smoke_clone.run("dvc", "plots", "show", "--out", str(page))
    assert "WARNING" not in shown.stderr
    html = (page / "index.html").read_text()
    assert not re.search(r"<(script|link|img)[^>]*(src|href)=.https?:", html)
    assert "vegaEmbed(" in html
    for title in YAML(typ="safe").load(smoke_clone.path / "dvc.yaml")["plots"]:
        assert (title if isinstance(title, str) else next(iter(title))).rpartition("/")[2] in html


def test_nothing_that_a_stage_wrote_names_this_machine(smoke_clone):
    written = [p for folder in ("reports", "data") for p in (smoke_clone.path / folder).rglob("*") if p.is_file()]
    assert len(written) > 50
    named = [p for p in written if str(smoke_clone.path).encode() in p.read_bytes()]
    assert named == []


def test_edits_that_decide_no_result_rerun_no_stage_that_takes_minutes(smoke_clone):
    edited = ["src/subspacelab/tracking/store.py", "src/subspacelab/lowrank/commands.py", "src/subspacelab/cli.py"]
    edited += ["src/subspacelab/rotation/display.py", "src/subspacelab/rotation/logging.py", "README.md"]
    edited += ["src/subspacelab/rotation/plots.py", "src/subspacelab/plotting/figures.py"]
    drawing = ["src/subspacelab/norms/plots.py", "src/subspacelab/lowrank/plots.py"]
    before = {path: (smoke_clone.path / path).read_bytes() for path in [*edited, *drawing]}
    try:
        for path in edited:
            (smoke_clone.path / path).write_bytes(before[path] + b"\n# edited\n")
        assert "up to date" in smoke_clone.run("dvc", "status").stdout
        for path in drawing:
            (smoke_clone.path / path).write_bytes(before[path] + b"\n# edited\n")
        changed = json.loads(smoke_clone.run("dvc", "status", "--json").stdout)
        assert {name.partition("@")[0] for name in changed} == {"analyze_norms", "visualize_lowrank"}
    finally:
        for path, content in before.items():
            (smoke_clone.path / path).write_bytes(content)


def test_stages_with_pictures_are_those_that_are_listed_as_such(smoke_clone):
    drawn = {
        name.partition("@")[0]
        for name, stage in lock(smoke_clone).items()
        for path in (smoke_clone.path / out["path"] for out in stage.get("outs", []))
        if any(file.suffix == ".png" for file in [path, *path.rglob("*")])
    }
    assert drawn == {*DRAWING, *LONG} - {"measure_forgetting"}  # which has no methods here


def test_a_change_of_the_rank_reruns_what_depends_on_it(smoke_clone):
    params = smoke_clone.path / "params.yaml"
    params.write_text(params.read_text().replace("rank: 128", "rank: 64"))
    changed = set(json.loads(smoke_clone.run("dvc", "status", "--json").stdout))
    smoke_clone.run("git", "checkout", "-q", ".")
    # The adapters' own rank, when it is null, is this one.
    assert changed == {s for s in STAGES if "lowrank" in s or s.startswith("build_adapter")} | {"report"}


def test_a_queue_lands_in_the_one_store_and_can_be_applied(smoke_clone):
    for name, k in (("k-six", 6), ("k-seven", 7)):
        change = ("-n", name, "-S", f"compare_rotations.k={k}")
        smoke_clone.run("dvc", "exp", "run", "--queue", *change, "compare_rotations")
    smoke_clone.run("dvc", "queue", "start", "-j", "2")
    try:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and not (
            of_experiment(smoke_clone, "k-six")
            and of_experiment(smoke_clone, "k-seven")
            and _queue_is_done(smoke_clone)
        ):
            time.sleep(2)
    finally:
        smoke_clone.run("dvc", "queue", "stop", "--kill", check=False)
    for name in ("k-six", "k-seven"):
        runs = of_experiment(smoke_clone, name)
        assert {s: r.info.status for s, r in runs.items()} == {"compare_rotations": "FINISHED"}, name
        assert runs["compare_rotations"].data.tags["dvc.mode"] == "queue"
    assert smoke_clone.status() == ""
    apply = of_experiment(smoke_clone, "k-six")["compare_rotations"].data.tags["dvc.apply"]
    smoke_clone.run(*apply.split())
    assert json.loads((smoke_clone.path / "reports/rotation/details.json").read_text())["k"] == 6
    smoke_clone.run("git", "checkout", "-q", ".")
    smoke_clone.run("dvc", "checkout")


def _queue_is_done(clone) -> bool:
    status = clone.run("dvc", "queue", "status").stdout
    return not re.search(r"Queued|Running", status)


def test_an_experiment_reruns_only_what_depends_on_the_change_and_a_real_server_gets_it(smoke_clone, tmp_path):
    from mlflow.tracking import MlflowClient

    port = "5071"
    server = subprocess.Popen(
        ["mlflow", "server", "--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--port", port, "--workers", "1"]
        + ["--artifacts-destination", str(tmp_path / "artifacts"), "--host", "127.0.0.1"],
        env=smoke_clone.environment(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false"),
        cwd=tmp_path,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    uri = f"http://127.0.0.1:{port}"
    try:
        _wait_for(uri + "/health")
        change = ("-n", "k-four", "-S", "compare_rotations.k=4")
        assert "k-four" in smoke_clone.run("dvc", "exp", "run", *change, MLFLOW_TRACKING_URI=uri).stdout
        client = MlflowClient(uri)
        found = client.search_runs([e.experiment_id for e in client.search_experiments()])
        runs = {r.data.tags["dvc.stage"]: r for r in found if "dvc.stage" in r.data.tags}
        artifacts = {a.path for a in client.list_artifacts(runs["compare_rotations"].info.run_id)}
    finally:
        os.killpg(server.pid, signal.SIGKILL)
    assert {stage: run.info.status for stage, run in runs.items()} == dict.fromkeys(
        ("compare_rotations", "report"), "FINISHED"
    )
    run = runs["compare_rotations"].data
    assert (run.tags["dvc.mode"], run.tags["dvc.apply"]) == ("exp", "dvc exp apply k-four")
    assert run.params["compare_rotations.k"] == "4"
    assert "layers.json" in artifacts

    figures = tmp_path / "figures.json"
    smoke_clone.run("subspacelab", "metrics", "write", "k-four", "--reference", str(figures))
    committed = json.loads((smoke_clone.path / "tests/reference/smoke_metrics.json").read_text())
    assert json.loads(figures.read_text()).keys() == committed.keys()
    smoke_clone.run("git", "checkout", "-q", ".")
    smoke_clone.run("dvc", "checkout")


def _wait_for(url: str, seconds: float = 60) -> None:
    import urllib.error
    import urllib.request

    deadline = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except OSError:
            assert time.monotonic() < deadline, f"{url} did not answer in {seconds} s"
            time.sleep(0.5)


def start_and_kill(clone, arrived, *, group: bool) -> None:
    """Starts `dvc repro`, and kills it, or the whole process group, as soon as `arrived()`."""
    process = subprocess.Popen(
        ["dvc", "repro", KILLED],
        cwd=clone.path,
        env=clone.environment(),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 240
    while not arrived():
        assert process.poll() is None, "the pipeline ended before it could be killed"
        assert time.monotonic() < deadline, "the pipeline did not get there"
        time.sleep(0.01)
    (os.killpg if group else os.kill)(process.pid, signal.SIGKILL)
    process.wait()


def test_killed_twice_the_pipeline_ends_with_the_same_bytes(smoke_clone, make_smoke_clone):
    clone = make_smoke_clone()
    work = clone.path / ".cache" / "stages"

    start_and_kill(clone, lambda: any(work.glob("checkpoint_base/*/snapshot.safetensors")), group=True)
    # DVC alone: its stage lives on as an orphan, and may still be writing when the next run begins.
    start_and_kill(clone, lambda: any(work.glob("checkpoint_rl_stage1/*/snapshot.safetensors")), group=False)
    clone.run("dvc", "repro", KILLED)

    once = lock(smoke_clone)
    assert KILLED in lock(clone)
    assert lock(clone) == {stage: once[stage] for stage in lock(clone)}  # the MD5 of every out
    statuses = [run.info.status for run in clone.runs()]
    assert "RUNNING" not in statuses
    assert statuses.count("KILLED") >= 2
    assert "up to date" in clone.run("dvc", "repro", KILLED).stdout


def test_an_input_edited_in_mid_run_is_not_filed_under_the_new_value(smoke_clone, tmp_path):
    # A copy: the refused run stays FAILED in its store, and other tests look at the runs of the shared clone.
    clone = replace(smoke_clone, path=shutil.copytree(smoke_clone.path, tmp_path / "clone", symlinks=True))
    params = clone.path / "params.yaml"
    lock = (clone.path / "dvc.lock").read_text()
    process = subprocess.Popen(
        ["dvc", "repro", "--force", "--single-item", "compare_rotations"],
        cwd=clone.path,
        env=clone.environment(),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    running = clone.path / ".cache" / "stages" / "compare_rotations"
    while process.poll() is None and not any(p.is_dir() for p in running.glob("*")):
        time.sleep(0.01)
    params.write_text(params.read_text().replace("k: null", "k: 3"))
    _, printed = process.communicate()
    assert process.returncode != 0
    assert "params.yaml" in printed
    assert (clone.path / "dvc.lock").read_text() == lock


def test_a_sweep_without_a_queue_leaves_the_workspace_alone(smoke_clone):
    params = (smoke_clone.path / "params.yaml").read_bytes()
    name = "compare_rotations.k=2"
    printed = smoke_clone.run("subspacelab", "sweep", "-S", name, "--targets", "compare_rotations")
    assert f"[1 of 1] {name}" in printed.stderr
    assert next(line for line in printed.stdout.splitlines() if name in line).split()[1] == "done"
    assert (smoke_clone.path / "params.yaml").read_bytes() == params
    assert smoke_clone.status() == ""
    run = of_experiment(smoke_clone, name)["compare_rotations"]
    assert (run.info.status, run.data.params["compare_rotations.k"]) == ("FINISHED", "2")
    assert run.data.tags["dvc.mode"] == "temp"


RUN_ALL = """
import json, sys
from subspacelab.cli import main

for language, body in json.loads(sys.argv[1]):
    print("running", body, file=sys.stderr)
    if language == "python":
        exec(compile(body, "<page>", "exec"), {"__name__": "__main__"})
        continue
    try:
        main(body)
    except SystemExit as end:
        # 3: an expectation of the adapter failed, which is an answer
        assert end.code in (0, 3 if "compare-stats" in body else 0), body
"""
"""In one process, since each would take seconds to start."""


def test_the_pages_commands_on_what_the_pipeline_made_run_as_they_stand(smoke_clone):
    blocks = [block for page in STUDIES for block in read_blocks(page) if block.demo]
    work = []
    for block in blocks:
        assert block.language == "python" or all(command[0] == "subspacelab" for command in block.commands)
        work += [("python", block.body)] if block.language == "python" else [("bash", c[1:]) for c in block.commands]
    smoke_clone.run(sys.executable, "-c", RUN_ALL, json.dumps(work), TRACKING="off")
    ran = {tuple(command[1:3]) for block in blocks for command in block.commands if block.language == "bash"}
    assert {room for room, _ in ran} == {"rotation", "lowrank", "nullspace", "norms"}
    made = {path.relative_to(smoke_clone.path / "results").as_posix() for path in smoke_clone.path.glob("results/**/*")}
    expected = {"rotation/layers.csv", "comparison/comparison.csv", "adapter/adapter_config.json", "trained.json"}
    assert made >= expected | {"before-after/compare_stats.csv", "norms.json", "norms/comparison.csv"}
    assert smoke_clone.status() == ""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_as_a_kernel_runs_it(path, smoke_clone, monkeypatch, tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("SUBSPACELAB_DATA", str(smoke_clone.path / "data"))
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'src'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert [output for output in shown if output.output_type == "error"] == []
    assert any("text/html" in output.get("data", {}) for output in shown)  # a table
    assert list(tmp_path.iterdir()) == []  # nothing is written unless asked to
