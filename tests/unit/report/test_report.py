"""The page: its numbers are those of the files, it is the same bytes each time, and nothing of a file is obeyed."""

import re
from pathlib import Path

import pandas as pd
import pytest
from tests.unit.report.projects import rotation_curves, write_project

pytest.importorskip("plotly")

from subspacelab.core.files import write_csv, write_json
from subspacelab.report import page as page_module
from subspacelab.report.building import build_report
from subspacelab.report.page import Page, Section, Table, render, shown
from subspacelab.report.results import Results

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return write_project(tmp_path)


def without_plotly(html: str) -> str:
    """The page less the library, in which everything stands somewhere."""
    from plotly.offline import get_plotlyjs

    return html.replace(get_plotlyjs(), "")


def section_of(study: str, project: Path) -> Section:
    module = pytest.importorskip(f"subspacelab.report.{study}")
    return module.section(Results(project))


def test_equal_results_give_equal_bytes_in_which_no_place_or_time_stands(project: Path) -> None:
    html = build_report(project)
    assert build_report(project) == html
    own = without_plotly(html)
    assert str(project) not in own
    assert not re.search(r"\b20\d\d-\d\d-\d\d\b", own)


def test_every_section_has_its_numbers_files_and_commands(project: Path) -> None:
    own = without_plotly(build_report(project))
    for study in ("checkpoints", "rotation", "lowrank", "nullspace", "norms"):
        assert f'<section id="{study}">' in own
        assert f"reports/{study}/metrics.json" in own
    for number in ("0.600", "1.75", "0.9900", "60.0%", "+50.00%", "1 of 2 weights", "1 of 2 expectations"):
        assert number in own, number
    for figure in ("lowrank-task", "lowrank-rates", "What to store", "boxes of IoU 0.625; it changes -0.125 by SVD"):
        assert figure in own, figure
    assert "dvc repro compare_rotations" in own
    assert "git.commit" not in own


def test_nothing_is_fetched_and_nothing_can_be_sent_away(project: Path) -> None:
    html = build_report(project)
    assert not re.search(r"<(script|img|link|iframe)[^>]*\b(src|href)=[\"']?(https?:)?//", without_plotly(html))
    own = without_plotly(html)
    assert own.count('"showSendToCloud": false') == own.count("Plotly.newPlot(") >= 8


def test_a_missing_study_is_said_and_no_error(project: Path) -> None:
    for file in (project / "reports" / "norms").iterdir():
        file.unlink()
    own = without_plotly(build_report(project))
    assert "There are no results of norms here; dvc repro compare_norms makes them." in own
    assert "No channel maps: data/features or data/lowrank/results is not here" in own


def test_named_studies_alone_are_reported_in_the_pages_order(project: Path) -> None:
    own = without_plotly(build_report(project, ["norms", "rotation"]))
    assert re.findall(r'<section id="(\w+)">', own) == ["summary", "rotation", "norms", "origin"]


@pytest.mark.parametrize(
    ("studies", "said"), [(["nosuch"], "nosuch"), ([], "no results"), (["norms"], "no results of norms")]
)
def test_unknown_studies_and_a_project_without_results_are_one_line(
    tmp_path: Path, studies: list[str], said: str
) -> None:
    with pytest.raises(ValueError, match=said) as e:
        build_report(tmp_path, studies)
    assert "\n" not in str(e.value)


def test_names_from_files_are_text_everywhere(project: Path) -> None:
    layers = pd.DataFrame({"weight": [EVIL, "$x^2$"], "module": [EVIL, "{{ 7 * 7 }}"], "nss_02": [1.0, 2.0]})
    write_csv(project / "reports/rotation/layers.csv", layers)
    write_csv(project / "reports/rotation/curves.csv", rotation_curves().replace({"module": {"tall": EVIL}}))
    write_json(project / "reports/norms/base.json", {"embedding_layers": {EVIL: {"kind": EVIL, EVIL: 1}}})
    write_json(project / "reports/lowrank/pictures/rank_curve.json", {EVIL: {"4": 0.5}})
    (project / f"reports/nullspace/verify/{EVIL.replace('/', '')}-init.json").write_text(
        '{"stats": [{"layer": "<i>", "BX_ratio": 0.5}]}'
    )
    clean = build_report(write_project(project / "clean"))
    html = build_report(project)
    assert "alert(1)</script>" not in html
    assert html.count("<img") == clean.count("<img")
    assert html.count("<script") == clean.count("<script")
    assert "{{ 7 * 7 }}" in html
    figures = [
        b.figure
        for s in ("rotation", "lowrank", "nullspace")
        for b in section_of(s, project).blocks
        if hasattr(b, "figure")
    ]
    names = [text for figure in figures for trace in figure.data for text in (trace.name, *(trace.text or ())) if text]
    assert any("&lt;script" in name for name in names)  # plotly takes tags in names for tags
    assert not any("<" in name for name in names)


def test_new_columns_and_measures_show_up_by_their_names(project: Path) -> None:
    write_csv(project / "reports/rotation/curves.csv", rotation_curves().assign(brandnew=[1.0, 2.0, 3.0, 4.0]))
    modules = pd.DataFrame({"module": ["tall"], "num_weights": 2, "nss_02_z": 40.0, "brandnew_x_z": 2.0})
    write_csv(project / "reports/rotation/modules.csv", modules)
    figures = {block.id: block for block in section_of("rotation", project).blocks if hasattr(block, "id")}
    assert "brandnew" in figures["rotation-curves"].choices[0].values
    assert list(figures["rotation-z"].figure.data[0].x) == ["nss_02", "brandnew_x"]


def test_a_side_that_is_an_identity_is_not_drawn(project: Path) -> None:
    (curves,) = [b for b in section_of("rotation", project).blocks if getattr(b, "id", "") == "rotation-curves"]
    drawn = {trace.name: list(trace.y) for trace in curves.figure.data}
    assert drawn["square"] == [None, None]
    assert drawn["tall"] == [1e-9, 2e-9]
    assert drawn["tall: random updates"] == [2e-9, 2e-9]
    levels = {trace.name.partition(": ")[2]: (trace.meta["control"], trace.visible) for trace in curves.figure.data}
    assert levels == {"": (0, True), "random updates": (1, True), "bf16 noise": (2, False),
                      "random middle basis": (2, False), "own middle basis": (2, False)}  # fmt: skip


def test_headlines_that_are_missing_or_no_numbers_are_left_out(project: Path) -> None:
    text = '{"composition_error_ratio": NaN, "leading_energy": null, "stage_cosine": 0.5, "stage_cosine_z": Infinity}'
    (project / "reports/rotation/metrics.json").write_text(text)
    section = section_of("rotation", project)
    assert [one.value for one in section.headlines] == ["0.500"]
    assert section.headlines[0].beside == "random updates: 0"


def test_every_choice_of_every_figure_has_its_frame(project: Path) -> None:
    chosen = [
        b
        for s in ("rotation", "lowrank", "nullspace")
        for b in section_of(s, project).blocks
        if getattr(b, "choices", ())
    ]
    assert len(chosen) == 5
    for block in chosen:
        assert {frame["name"] for frame in block.frames} == {str(i) for i in range(len(block.choices[0].values))}
        assert all(frame["traces"] == list(range(len(block.figure.data))) for frame in block.frames)


def test_a_page_that_is_too_large_to_be_sent_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table("t", pd.DataFrame({"a": ["x" * 100] * 30}))
    page = Page("p", [Section("norms", "q", blocks=[table])], [])
    assert render(page).count("x" * 100) == 30
    monkeypatch.setattr(page_module, "LARGEST", 5_000_000)
    monkeypatch.setattr(page_module, "MAX_ROWS", 10**6)
    with pytest.raises(ValueError, match=r"6\.1 MB, at most 5 can be sent"):
        render(Page("p", [Section("norms", "q", blocks=[Table("t", pd.concat([table.frame] * 400))])], []))


def test_a_table_of_very_many_cells_keeps_its_main_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = pd.DataFrame({"a": [1, 2], "b": [3, 4], "c": [5, 6]})
    assert Table("t", frame, ["c"]).columns == ["c", "a", "b"]
    monkeypatch.setattr(page_module, "MAX_CELLS", 5)
    assert Table("t", frame, ["c"]).columns == ["c"]
    assert "the file has 3 columns" in render(Page("p", [Section("norms", "q", blocks=[Table("t", frame, ["c"])])], []))


def test_cells_have_four_digits_and_missing_ones_are_empty() -> None:
    assert [shown(v) for v in (1 / 3, float("nan"), None, True, 12, "a", 1e-9)] == [
        "0.3333",
        "",
        "",
        "yes",
        "12",
        "a",
        "1e-09",
    ]
