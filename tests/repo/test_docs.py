"""The site builds with every link checked, fetches nothing when it is viewed, and its search works from disk."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.repo.documents import NOTEBOOKS, ROOT

pytest.importorskip("mkdocs")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site; `strict` in mkdocs.yml makes every warning an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def pages(site: Path) -> dict[str, str]:
    return {path.relative_to(site).as_posix(): path.read_text() for path in site.rglob("*.html")}


def test_there_is_a_page_for_each_study_in_both_languages_and_for_each_notebook(site):
    studies = ("rotation", "lowrank", "nullspace", "norms")
    wanted = {f"{folder}{study}.html" for study in studies for folder in ("", "zh/", "notebooks/")}
    wanted |= {"index.html", "zh/index.html", "api.html", "troubleshooting.html", "contributing.html"}
    assert wanted <= set(pages(site))


def test_no_page_fetches_anything_from_elsewhere(site):
    fetched = re.compile(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"?(?:https?:)?//|<link\b[^>]*\bstylesheet[^>]*//")
    assert [name for name, text in pages(site).items() if fetched.search(text)] == []


def test_the_search_works_from_disk(site):
    index = (site / "search" / "search_index.js").read_text().removeprefix("var __index = ")
    found = {doc["location"].partition("#")[0] for doc in json.loads(index)["docs"]}
    assert found >= {"rotation.html", "zh/rotation.html"}
    assert "iframe-worker" in pages(site)["index.html"]


def test_every_public_name_is_on_the_api_page(site):
    import subspacelab as sl

    names = []
    for name in sl.__all__:
        names += [f"{name}.{part}" for part in getattr(getattr(sl, name), "__all__", ())] or [name]
    text = "".join(text for page, text in pages(site).items() if page.startswith("api"))
    assert [name for name in names if f"sl.{name}" not in text] == []


def test_no_fence_is_shown_as_text(site):
    for name, text in pages(site).items():
        assert "```" not in text, name


def test_notebooks_are_stored_without_outputs():
    for path in NOTEBOOKS:
        cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
        assert cells, path.name
        assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells), path.name


def test_the_devcontainer_sets_up_by_make():
    settings = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    assert settings["postCreateCommand"] == "make setup"
