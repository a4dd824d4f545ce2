"""`subspacelab report`: one file, which only this command may replace, with the commit of the folder."""

import subprocess
from pathlib import Path

import pytest
from tests.unit.report.projects import write_project

pytest.importorskip("plotly")

from subspacelab.cli import main


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(write_project(tmp_path))
    return tmp_path


def call(*words: str) -> int:
    with pytest.raises(SystemExit) as e:
        main(["report", *words])
    return int(e.value.code or 0)


def test_the_page_is_written_again_to_the_same_bytes_and_says_its_size(
    project: Path, capsys: pytest.CaptureFixture
) -> None:
    assert call("--output", "out/page.html", "norms") == 0
    assert "out/page.html: " in capsys.readouterr().out
    first = (project / "out/page.html").read_bytes()
    assert call("--output", "out/page.html", "norms") == 0
    assert (project / "out/page.html").read_bytes() == first


def test_the_commit_is_named(project: Path) -> None:
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "results"]):
        subprocess.run([*git, *words], check=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert call("--output", "page.html", "norms") == 0
    assert f"<td>{commit}\n" in (project / "page.html").read_text()


def test_a_file_of_somebody_else_is_refused_and_stays(project: Path, capsys: pytest.CaptureFixture) -> None:
    (project / "mine.html").write_text("mine")
    assert call("--output", "mine.html") == 1
    assert "mine.html" in capsys.readouterr().err
    assert (project / "mine.html").read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nosuch"], "nosuch"),
        (["--output", "reports"], "a folder"),
        (["--channels", "0"], "channels"),
        (["--pictures", "-1"], "pictures"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    project: Path, capsys: pytest.CaptureFixture, words: list[str], said: str
) -> None:
    before = sorted(path for path in project.rglob("*"))
    assert call(*words) == 1
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert sorted(path for path in project.rglob("*")) == before
