"""dvc.yaml lists exactly the code that each stage imports: proved from the import graph."""

import ast
from pathlib import Path

import grimp
import pytest
from ruamel.yaml import YAML

from subspacelab.pipeline.params import read_params
from subspacelab.pipeline.stage import read_declaration

ROOT = Path(__file__).resolve().parents[2]
STAGES = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
# Packages whose files are listed one by one, so that a change to one stage's code does not re-run the others; a
# package within one is listed as a folder, since DVC takes longer over every line of dvc.lock.
BY_FILE = {"data", "demo", "lowrank", "models", "norms", "nullspace", "reports", "rotation", "training"}


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("subspacelab", cache_dir=None)


def imported_by(door: Path, graph: grimp.ImportGraph) -> set[str]:
    """Every module of the package that a door imports, directly or not, with the packages that hold them."""
    named = set()
    for node in ast.walk(ast.parse(door.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("subspacelab"):
            named |= {node.module, *(f"{node.module}.{a.name}" for a in node.names)}
        elif isinstance(node, ast.Import):
            named |= {a.name for a in node.names if a.name.startswith("subspacelab")}
    found, new = set(), named & graph.modules
    while new:
        found |= new
        parents = {m.rsplit(".", 1)[0] for m in new if "." in m}
        new = set().union(parents, *(graph.find_modules_directly_imported_by(m) for m in new)) - found
    return found


def listed_as(module: str) -> str:
    """The entry of `deps` that covers a module."""
    parts = module.split(".")
    path = Path("src", *parts)
    if len(parts) > 2 and (ROOT / "src" / Path(*parts[:3])).is_dir():
        return str(Path("src", *parts[:3]))
    if len(parts) > 1 and parts[1] not in BY_FILE and (ROOT / "src" / "subspacelab" / parts[1]).is_dir():
        return f"src/subspacelab/{parts[1]}"
    return str(path / "__init__.py" if (ROOT / path).is_dir() else path.with_suffix(".py"))


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_code_that_it_imports_and_on_no_other(stage, graph):
    door = f"pipelines/{stage}.py"
    wanted = {listed_as(m) for m in imported_by(ROOT / door, graph)} | {door, "pipelines/_checkout.py"}
    listed = {str(p) for p in read_declaration(stage, path=ROOT / "dvc.yaml").sources}
    assert listed == wanted, f"dvc.yaml, stage {stage}: deps should be\n" + "\n".join(
        f"      - {d}" for d in sorted(wanted)
    )


@pytest.mark.parametrize("stage", STAGES)
def test_door_section_and_stage_share_one_name(stage):
    assert (ROOT / "pipelines" / f"{stage}.py").is_file()
    assert stage in str(STAGES[stage]["params"])
    assert f"pipelines/{stage}.py" in STAGES[stage]["cmd"]


@pytest.mark.parametrize("stage", STAGES)
def test_no_plain_out_is_without_cache(stage):
    # DVC keeps a stage with such an out from the run cache; metrics and plots may lie in git instead.
    plain = [out for out in STAGES[stage].get("outs", []) if isinstance(out, dict)]
    assert not [out for out in plain if next(iter(out.values())).get("cache") is False]


@pytest.mark.parametrize("study", sorted(p.stem for p in (ROOT / "pipelines" / "studies").glob("*.yaml")))
def test_every_study_can_be_read(study, tmp_path):
    text = (ROOT / "params.yaml").read_text().replace("study: demo", f"study: {study}")
    (tmp_path / "params.yaml").write_text(text)
    params = read_params(tmp_path / "params.yaml", ROOT / "pipelines" / "studies")
    assert params.study.name == study
    assert "base" in params.study.checkpoints
