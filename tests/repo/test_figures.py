"""The documents' figures are those of the committed files; and what the check finds is found."""

import subprocess

import pytest
from tests.repo.figures import problems

SETTINGS = """
files:
  make repro: {recall: reports/recall.json, table: reports/table.csv}
names: {mean_recall: recall.lora.mean, shown: "round(mean_recall, 2)"}
figures:
  page.md other.md:
    - "{shown:.2f} +- {recall.lora.se:.2f}"
    - {each: [a, b], text: "| {it} | {table.ratio[it]:.1e} |"}
constants:
  thresholds: [below 0.5]
"""
PAGE = """Recall is 0.59 +-
  0.07 where it must not lie below 0.5.
| a | 2.0e-07 |
| b | 3.0e-07 |
`--lr 1e-3`, [a link](v1.2.md), 512 pictures, rank 64 of 2026-11-26
```
lr 0.1 for 13 minutes
```
"""


@pytest.fixture
def repository(tmp_path):
    """A repository with two result files, the settings above, and two pages whose figures the files give."""
    for folder in ("docs", "reports"):
        (tmp_path / folder).mkdir()
    (tmp_path / "docs" / "figures.yaml").write_text(SETTINGS)
    (tmp_path / "reports" / "recall.json").write_text('{"lora": {"mean": 0.59166, "se": 0.0712}}')
    (tmp_path / "reports" / "table.csv").write_text("# from a command\nname,ratio\na,2e-7\nb,3e-7\n")
    for name in ("page.md", "other.md"):
        (tmp_path / name).write_text(PAGE)
    return tmp_path


def test_every_figure_of_the_documents_comes_from_a_committed_file():
    assert problems() == []


def test_figures_that_the_files_give_are_found_whatever_the_line_breaks(repository):
    assert problems(repository) == []


def test_a_figure_that_differs_is_named_with_its_line_and_what_the_files_give(repository):
    (repository / "page.md").write_text(PAGE.replace("0.07", "0.08").replace("| b | 3", "| b | 13"))
    assert problems(repository) == [
        "page.md: the files give '0.59 +- 0.07', which stands nowhere",
        "page.md: the files give '| b | 3.0e-07 |', which stands nowhere",
        "page.md:1: from no file: 0.59",
        "page.md:2: from no file: 0.08",
        "page.md:4: from no file: 13.0e-07",
    ]


@pytest.mark.parametrize(
    "figure",
    [
        "0.5",
        "-1.25",
        "5e-7",
        "93 %",
        "93%",
        "4 times",
        "3 倍",
        "15 minutes",
        "4 分钟",
        "162 s",
        "1,024 GB",
        "0.20",
        "+- 3",
    ]
    + ["14 of 28", "138 of 51,746", "1/45", "13:04", "20 degrees"],
)
def test_a_figure_without_a_file_is_found(repository, figure):
    for text in (f"about {figure}, then", f"为{figure}。"):
        (repository / "other.md").write_text(f"{PAGE}{text}\n")
        found = problems(repository)
        assert len(found) == 1
        assert found[0].startswith("other.md:9: from no file: ")


def test_sizes_dates_code_and_names_are_no_figures(repository):
    text = "rank 128 of `0.256`, 60 steps, 2026-11-26, family 26, 448-pixel, v1.5, torch2.13, 2 cores, [1024](a0.5.md)"
    (repository / "other.md").write_text(f"{PAGE}{text}\n")
    assert problems(repository) == []


def test_a_mark_and_a_constant_that_stands_nowhere_are_found(repository):
    for name in ("page.md", "other.md"):
        (repository / name).write_text(PAGE.replace("below 0.5", "so low"))
    (repository / "page.md").write_text(PAGE.replace("below 0.5", "TODO-ROT"))
    assert problems(repository) == [
        "page.md:2: from no file: TODO-ROT",
        "docs/figures.yaml: the constant 'below 0.5' stands nowhere",
    ]


def test_files_are_read_as_committed_unless_the_work_tree_is_asked_for(repository):
    git = ["git", "-C", str(repository), "-c", "user.name=n", "-c", "user.email=e"]
    for command in (["init", "--quiet"], ["add", "reports/recall.json"], ["commit", "--quiet", "-m", "A study"]):
        subprocess.run([*git, *command], check=True)
    for name, text in {
        "recall.json": '{"lora": {"mean": 0.5, "se": 0.1}}',
        "table.csv": "name,ratio\na,2e-7\nb,3e-7\n",
    }.items():
        (repository / "reports" / name).write_text(text)
    assert problems(repository) == []  # table.csv is new to git, and read from the work tree
    assert "the files give '0.50 +- 0.10'" in problems(repository, committed=False)[0]


def test_a_template_that_does_not_fit_its_file_names_itself(repository):
    (repository / "docs" / "figures.yaml").write_text(SETTINGS.replace("recall.lora.se", "recall.lora.deviation"))
    with pytest.raises(KeyError, match="deviation") as e:
        problems(repository)
    assert "recall.lora.deviation" in e.value.__notes__[0]
