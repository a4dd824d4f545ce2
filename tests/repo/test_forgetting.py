"""The study of forgetting: its page and its study file name the methods that there are."""

from pathlib import Path

from subspacelab.nullspace.config import MeasureForgettingConfig
from subspacelab.nullspace.forgetting.methods import RIVALS
from subspacelab.pipeline.params import read_params

ROOT = Path(__file__).resolve().parents[2]


def test_the_study_names_methods_that_exist(tmp_path: Path) -> None:
    params = (ROOT / "params.yaml").read_text().replace("study: demo", "study: smollm2")
    (tmp_path / "params.yaml").write_text(params)
    read = read_params(tmp_path / "params.yaml", ROOT / "pipelines" / "studies")
    assert read.study.reference("llm") == "HuggingFaceTB/SmolLM2-135M-Instruct"
    methods = read.section("measure_forgetting", MeasureForgettingConfig).methods
    assert methods
    assert set(methods) <= set(RIVALS)


def test_every_rival_is_on_the_page_and_no_other() -> None:
    text = (ROOT / "docs" / "forgetting.md").read_text()
    rows = text.partition("| name | what trains |")[2].partition("\n\n")[0].splitlines()[2:]
    named = {name.strip("` ") for row in rows for name in row.split("|")[1].split(",")}
    assert named == set(RIVALS)
