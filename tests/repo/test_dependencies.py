"""dvc.yaml names, for every stage, the folders of the code that decides its result: proved from the import graph."""

import ast
from pathlib import Path

import grimp
import pytest
from ruamel.yaml import YAML

from subspacelab.pipeline.params import read_params
from subspacelab.pipeline.stage import read_declaration
from subspacelab.tracking.dvc_files import dependency_files, md5_file

ROOT = Path(__file__).resolve().parents[2]
STAGES = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
LOCK = YAML(typ="safe").load(ROOT / "dvc.lock")["stages"]
NEUTRAL_FILES = {
    "commands",
    "display",
    "flags",
    "logging",
    "mlflow_model",
    "plots",
    "audit_plots",
    "curve_plots",
    "judge_plots",
    "null_plots",
    "storage_plots",
}
"""What prints, tracks, helps and draws, in any study; .dvcignore takes them out of the folders."""
NEUTRAL = {"cli", "commands", "pipeline", "plotting", "tracking"}
"""Of pipeline/: seed and threads are set by core, and parameters DVC compares by their values."""
DRAWING = {
    "visualize_lowrank": "lowrank/plots",
    "compare_stats": "nullspace/plots",
    "analyze_norms": "norms/plots",
}
"""Stages with pictures that take seconds, on real models, too, and what draws them: an edit of it runs them again."""
LONG = {
    *("checkpoint_base", "checkpoint_rl_stage1", "checkpoint_rl_stage2", "compare_rotations", "judge_updates"),
    *("train_lowrank", "continue_lowrank", "compare_lowrank", "measure_forgetting"),
}
"""Stages with pictures that take minutes, here or on a real model: `dvc repro --force` draws theirs again."""


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("subspacelab", cache_dir=None)


def imported_by(script: Path, graph: grimp.ImportGraph) -> set[str]:
    """Every module of the package that a stage script imports, directly or not, but through what is neutral."""
    named = set()
    for node in ast.walk(ast.parse(script.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("subspacelab"):
            named |= {node.module, *(f"{node.module}.{a.name}" for a in node.names)}
        elif isinstance(node, ast.Import):
            named |= {a.name for a in node.names if a.name.startswith("subspacelab")}
    found, new = set(), named & graph.modules
    while new:
        found |= new
        followed = (graph.find_modules_directly_imported_by(m) for m in new if dependency(m))
        new = set().union(*followed) - found
    return found


def dependency(module: str) -> str | None:
    """The entry of `deps` that covers a module; None for what decides no result."""
    _, *parts = module.split(".")
    if not parts or parts[0] in NEUTRAL or parts[-1] in NEUTRAL_FILES or parts == ["synthetic"]:
        return None
    path = Path("src/subspacelab", *parts[: 2 if parts[0] == "synthetic" else 1])
    return str(path) if (ROOT / path).is_dir() else f"{path}.py"


def wanted_sources(stage: str, graph: grimp.ImportGraph) -> set[str]:
    """The code that a stage must depend on."""
    script = f"pipelines/{stage}.py"
    wanted = {script, *filter(None, map(dependency, imported_by(ROOT / script, graph)))}
    if stage in DRAWING:
        wanted |= {f"src/subspacelab/{name}.py" for name in DRAWING[stage].split()}
    return wanted


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_code_that_decides_its_result_and_on_no_other(stage, graph):
    wanted = wanted_sources(stage, graph)
    listed = {str(p) for p in read_declaration(stage, path=ROOT / "dvc.yaml").sources}
    assert listed == wanted, f"dvc.yaml, stage {stage}: deps should be\n{', '.join(sorted(wanted))}"


def test_what_is_neutral_is_left_out_of_the_folders(monkeypatch):
    monkeypatch.chdir(ROOT)
    counted = {path.stem for path in dependency_files(Path("src"))}
    assert "trainer" in counted
    assert not counted & NEUTRAL_FILES


@pytest.mark.parametrize("stage", STAGES)
def test_script_section_and_stage_share_one_name(stage):
    script = ROOT / "pipelines" / f"{stage}.py"
    assert stage in str(STAGES[stage]["params"]) or "NoSettings" in script.read_text()
    assert f"pipelines/{stage}.py" in STAGES[stage]["cmd"]


@pytest.mark.parametrize("stage", STAGES)
def test_no_plain_out_is_without_cache(stage):
    # DVC keeps a stage with such an out from the run cache; metrics and plots may lie in git instead.
    plain = [out for out in STAGES[stage].get("outs", []) if isinstance(out, dict)]
    assert not [out for out in plain if next(iter(out.values())).get("cache") is False]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_tracks_its_section_of_the_study_and_of_demo_which_others_extend(stage):
    tracked = [entry for entry in STAGES[stage]["params"] if isinstance(entry, dict)]
    files = {file: [key for key in keys if "." not in key] for entry in tracked for file, keys in entry.items()}
    assert files.get("pipelines/studies/demo.yaml") == files.get("pipelines/studies/${study}.yaml")


def test_the_report_is_made_again_when_any_parameter_changes():
    assert {"params.yaml", "pipelines/studies"} <= set(STAGES["report"]["deps"])


@pytest.mark.parametrize("study", sorted(p.stem for p in (ROOT / "pipelines" / "studies").glob("*.yaml")))
def test_every_study_can_be_read(study, tmp_path):
    text = (ROOT / "params.yaml").read_text().replace("study: demo", f"study: {study}")
    (tmp_path / "params.yaml").write_text(text)
    params = read_params(tmp_path / "params.yaml", ROOT / "pipelines" / "studies")
    assert params.study.name == study
    assert "base" in params.study.checkpoints


def test_what_the_documents_cite_is_what_the_pipeline_made():
    # Copied by `make demo-results`, since the details themselves lie in DVC's cache alone.
    made = {out["path"]: out["md5"] for stage in LOCK.values() for out in stage.get("outs", [])}
    demo = ROOT / "docs" / "results" / "demo"
    copies = [file for file in demo.rglob("*") if file.is_file()]
    assert len(copies) == 8
    stale = [f for f in copies if md5_file(f) != made[f"reports/{f.relative_to(demo).as_posix()}"]]
    assert not stale, "run `make demo-results` and commit"


def test_a_picture_among_the_plots_is_an_out_of_its_own():
    """One inside a folder that the cache lacks keeps DVC from saving an experiment of a fresh clone."""
    content = YAML(typ="safe").load(Path("dvc.yaml"))
    declared = [out for stage in content["stages"].values() for out in stage.get("outs", [])]
    outs = {next(iter(out)) if isinstance(out, dict) else out for out in declared}
    assert {plot for plot in content["plots"] if isinstance(plot, str)} <= outs
