"""The pipeline of the study of forgetting: its code dependencies, its scripts and its study belong together."""

import grimp
import pytest
from ruamel.yaml import YAML
from tests.repo.test_dependencies import ROOT, wanted_sources

from subspacelab.nullspace.config import ForgettingSettings
from subspacelab.nullspace.forgetting.methods import RIVALS
from subspacelab.pipeline.params import STUDIES, read_params
from subspacelab.pipeline.stage import read_declaration

PIPELINE = ROOT / "pipelines" / "smollm2" / "dvc.yaml"
CONTENT = YAML(typ="safe").load(PIPELINE)
PICTURE = {"src/subspacelab/nullspace/forgetting/plots.py", "src/subspacelab/plotting/figures.py"}


@pytest.mark.parametrize("stage", CONTENT["stages"])
def test_a_stage_depends_on_the_code_that_decides_its_result_and_on_no_other(stage: str) -> None:
    wanted = wanted_sources(stage, grimp.build_graph("subspacelab", cache_dir=None))
    wanted |= PICTURE if stage == "compare_forgetting" else set()
    assert {str(path) for path in read_declaration(stage, path=PIPELINE).sources} == wanted
    assert f"pipelines/{stage}.py" in CONTENT["stages"][stage]["cmd"]
    assert CONTENT["stages"][stage]["wdir"] == "../.."  # one working folder for all stages


def test_the_study_that_it_reads_is_there_and_names_methods_that_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [(PIPELINE.parent / name).resolve() for name in CONTENT["vars"]] == [ROOT / STUDIES / "smollm2.yaml"]
    monkeypatch.chdir(ROOT)
    params = read_params(study="smollm2")
    assert params.study.reference("llm") == "HuggingFaceTB/SmolLM2-135M-Instruct"
    settings = params.section("measure_forgetting", ForgettingSettings)
    assert set(settings.methods) <= set(RIVALS)


def test_every_rival_is_on_the_page_and_no_other() -> None:
    text = (ROOT / "docs" / "forgetting.md").read_text()
    rows = text.partition("| name | what trains |")[2].partition("\n\n")[0].splitlines()[2:]
    named = {name.strip("` ") for row in rows for name in row.split("|")[1].split(",")}
    assert named == set(RIVALS)
