"""What surrounds a stage: declaration, parameters, guard, continuation."""

import multiprocessing
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from subspacelab.core.files import write_json
from subspacelab.pipeline.stage import continued_folder, fingerprint, open_stage, read_declaration

DVC = """stages:
  toy:
    matrix:
      checkpoint: [a, b]
    cmd: python pipelines/toy.py ${item.checkpoint}
    deps: [pipelines/toy.py, src/toy.py, 'data/${item.checkpoint}']
    params: [seed]
    outs: ['out/${item.checkpoint}']
    metrics:
      - out.json: {cache: false}
  both:
    matrix:
      method: [lora, lora_null_v2]
      state: [init, trained]
    cmd: python pipelines/both.py ${item.method}-${item.state}
    deps: ['data/${item.state}/${item.method}']
    outs: ['out/${item.method}-${item.state}.json']
"""


@dataclass(frozen=True)
class Toy:
    steps: int


@pytest.fixture
def project(tmp_path, monkeypatch):
    files = {
        "dvc.yaml": DVC,
        "params.yaml": "study: s\nrank: 8\nseed: 3\nthreads: 1\ntoy:\n  steps: 5\n",
        "pipelines/studies/s.yaml": "checkpoints:\n  base: train\n",
        "pipelines/toy.py": "",
        "src/toy.py": "",
        "data/a": "input",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


def opened():
    return open_stage("toy", Toy, experiment="demo", item="a")


def test_the_declaration_is_that_of_dvc_yaml(project):
    declared = read_declaration("toy", "a")
    assert [str(p) for p in declared.deps] == ["pipelines/toy.py", "src/toy.py", "data/a"]
    assert [str(p) for p in declared.outs] == ["out/a", "out.json"]
    assert [str(p) for p in declared.sources] == ["pipelines/toy.py", "src/toy.py"]
    with pytest.raises(ValueError, match="no stage 'nosuch'"):
        read_declaration("nosuch")
    Path("dvc.yaml").write_text("stage: {}\n")
    with pytest.raises(ValueError, match=r"dvc\.yaml has no stage 'toy'; it has \[\]"):
        read_declaration("toy", "a")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stages: {toy: text}", r"dvc\.yaml: toy: .* got 'text'"),
        ("stages: [toy]", r"dvc\.yaml: stages: .* got \['toy'\]"),
        ("stages: 7", r"dvc\.yaml: stages: .* got 7"),
        ("stages: {1: {}, a: {}}", r"has no stage 'toy'; it has \['1', 'a'\]"),
        ("stages: {toy: {deps: a}}", r"toy\.deps: .* got 'a'"),
        ("stages: {toy: {deps: [1]}}", r"toy\.deps\.0\.str: .* got 1"),
        ("stages: {toy: {matrix: [a]}}", r"toy\.matrix: .* got \['a'\]"),
    ],
)
def test_a_declaration_of_other_types_is_one_line(project, text, said):
    Path("dvc.yaml").write_text(text)
    with pytest.raises(ValueError, match=said):
        read_declaration("toy", "a")


def test_an_item_of_two_axes_is_taken_apart(project):
    declared = read_declaration("both", "lora_null_v2-trained")
    assert [str(p) for p in declared.deps] == ["data/trained/lora_null_v2"]
    assert [str(p) for p in declared.outs] == ["out/lora_null_v2-trained.json"]


def test_a_stage_gets_its_parameters_seed_and_threads(project):
    with opened() as stage:
        assert (stage.params, stage.seed, stage.study.name) == (Toy(5), 3, "s")
        assert torch.get_num_threads() == 1
        drawn = torch.rand(3)
    assert torch.equal(drawn, torch.rand(3, generator=torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("changed", ["params.yaml", "pipelines/studies/s.yaml", "src/toy.py", "pipelines/toy.py"])
def test_a_stage_refuses_to_finish_when_an_input_changed_meanwhile(project, changed):
    with pytest.raises(ValueError, match=changed), opened():
        (project / changed).write_text((project / changed).read_text() + "# edited\n")


def test_a_stage_does_not_mind_what_is_not_its_input(project):
    with opened() as stage:
        (project / "src" / "other.py").write_text("x = 1\n")
    assert not stage.work_dir.exists()  # it finished


def test_a_failed_stage_finds_its_work_again_and_a_finished_one_leaves_nothing(project):
    with pytest.raises(RuntimeError), opened() as stage:
        (stage.work_dir / "snapshot").write_text("step 3")
        raise RuntimeError("killed")
    with opened() as stage:
        assert (stage.work_dir / "snapshot").read_text() == "step 3"
    assert not stage.work_dir.exists()


def test_other_inputs_mean_other_work(project):
    deps = read_declaration("toy", "a").deps
    first = fingerprint("toy@a", {"steps": 5}, deps)
    assert fingerprint("toy@a", {"steps": 5}, deps) == first
    assert fingerprint("toy@a", {"steps": 6}, deps) != first
    assert fingerprint("toy@b", {"steps": 5}, deps) != first
    (project / "data/a").write_text("other input")
    assert fingerprint("toy@a", {"steps": 5}, deps) != first


def test_two_runs_on_one_input_do_not_share_a_folder(project):
    with continued_folder("toy", "x") as first, continued_folder("toy", "x") as second:
        assert first != second


def test_of_two_runs_on_one_input_the_killed_one_is_taken_up_whichever_it_was(project):
    with continued_folder("toy", "x"), pytest.raises(RuntimeError), continued_folder("toy", "x") as second:
        (second / "snapshot").write_text("step 3")
        raise RuntimeError("killed")
    with continued_folder("toy", "x") as again:
        assert (again / "snapshot").read_text() == "step 3"
    assert {p.suffix for p in Path(".cache/stages/toy").iterdir()} == {".lock"}


def test_work_half_removed_is_not_taken_for_work(project, monkeypatch):
    class Killed(BaseException):
        pass

    def cut_short(path, **given):
        if path.exists():
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed), opened() as stage:
        write_json(stage.work_dir / "snapshot.json", 3)
        patch.setattr("subspacelab.core.files.shutil.rmtree", cut_short)
    with opened() as stage:
        assert list(stage.work_dir.iterdir()) == []
    assert {p.suffix for p in Path(".cache/stages/toy@a").iterdir()} == {".lock"}


def test_what_a_kill_left_half_written_beside_the_outs_goes(project):
    ours, others = f"{7:032x}.partial", ["out/.a.mine.partial", f"out/.b.{7:032x}.partial"]
    for left in (f"out/.a.{ours}/a/half", f".out.json.{ours}/out.json", *(f"{name}/half" for name in others)):
        write_json(project / left, 1)
    with opened():
        pass
    assert sorted(str(p.relative_to(project)) for p in project.rglob("*.partial")) == others


def work_until_told(name):
    with opened():
        Path(f"{name}-begun").touch()
        wait_for(f"{name}-ends")


def wait_for(name, seconds=30):
    deadline = time.monotonic() + seconds
    while not Path(name).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    return Path(name).exists()


@pytest.mark.parametrize("end", ["killed", "of itself"])
def test_a_run_waits_for_the_orphan_of_a_killed_dvc(project, capfd, end):
    fork = multiprocessing.get_context("fork")
    orphan, second = (fork.Process(target=work_until_told, args=[name]) for name in ("orphan", "second"))
    orphan.start()
    assert wait_for("orphan-begun")
    second.start()
    assert not wait_for("second-begun", 0.5), "two processes write the same outs"
    assert f"still at work in this folder (process {orphan.pid})" in capfd.readouterr().err
    orphan.kill() if end == "killed" else Path("orphan-ends").touch()
    assert wait_for("second-begun"), "a lock outlives its process"
    Path("second-ends").touch()
    for process in (orphan, second):
        process.join(30)
    assert second.exitcode == 0
