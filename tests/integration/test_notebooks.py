"""Each notebook of docs/notebooks runs on the smoke study's checkpoints, as a kernel runs it."""

import os

import pytest
from tests.faults.stage_scripts import ROOT, StageScripts

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytestmark = pytest.mark.slow
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
STAGES = ("scenes", "checkpoint_base", "checkpoint_rl_stage1", "checkpoint_rl_stage2", "corpus", "checkpoint_llm")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """data/ of a folder in which the smoke study's pictures, text and checkpoints were made."""
    scripts = StageScripts(tmp_path_factory.mktemp("smoke"))
    for stage in STAGES:
        scripts.run(stage)
    scripts.close()
    return scripts.folder / "data"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, data, monkeypatch, tmp_path):
    monkeypatch.setenv("SUBSPACELAB_DATA", str(data))
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'src'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert [output for output in shown if output.output_type == "error"] == []
    assert any("text/html" in output.get("data", {}) for output in shown)  # a table
    assert list(tmp_path.iterdir()) == []  # nothing is written unless asked to
