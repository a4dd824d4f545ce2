"""Assembly of the page from the studies that have results."""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from subspacelab.report.config import ReportConfig
from subspacelab.report.origin import page_origin, read_parameters, section_origin
from subspacelab.report.page import Page, Section, render
from subspacelab.report.results import Results
from subspacelab.tracking.notes import Summary

STUDIES = ("checkpoints", "rotation", "lowrank", "nullspace", "norms")
"""The sections of the page, in order: the checkpoints and the four studies."""
SENTENCES = 3
"""Number of sentences of a study in the tracker's summary."""
PICTURES = {"rotation": "null_scores.png", "lowrank": "svd_nn_comparison.png", "nullspace": "knowledge.png"}
"""Study -> the picture that shows its result."""


def require_plotly() -> None:
    """ValueError if the extra `report` is not installed."""
    for name in ("plotly", "jinja2"):
        if find_spec(name) is None:
            raise ValueError(f"{name} is missing, by which reports are drawn; pip install '.[report]' in the clone")


def build_report(
    root: Path | str = ".",
    studies: Sequence[str] = (),
    *,
    settings: ReportConfig | None = None,
    commit: Mapping[str, str] | None = None,
) -> str:
    """The page on `studies` (default: all), as HTML; equal results give equal bytes.

    `root` is a project: the page shows its reports/ and, for the channel maps, its data/. A study without results is
    listed as such. `commit` comes from `tracking.context.git_tags`; a stage leaves it out, since its result must not
    depend on it. ValueError for an unknown study, a malformed result, a project without results, and a page that is too
    large.
    """
    require_plotly()
    return render(read_page(root, studies, settings=settings, commit=commit))


def read_page(
    root: Path | str = ".",
    studies: Sequence[str] = (),
    *,
    settings: ReportConfig | None = None,
    commit: Mapping[str, str] | None = None,
) -> Page:
    """What `build_report` renders."""
    root = Path(root)
    params = read_parameters(root)
    chosen = [name for name in require_known(studies) or STUDIES if _is_there(name)]
    sections = [_section(name, root, settings or ReportConfig(), params) for name in chosen]
    if not any(section.blocks for section in sections):
        raise ValueError(
            f"{root / 'reports'}: no results of {', '.join(chosen)}; run from the project's root, after make repro"
        )
    title = f"subspacelab: results of the study {params.study.name}" if params else "subspacelab: results"
    return Page(title, sections, page_origin(params, commit or {}))


def summaries(page: Page, root: Path | str = ".") -> list[Summary]:
    """The first sentences of each study, with the picture that shows them where it is there, for a tracker."""
    found = []
    for section in page.sections:
        picture = Path(root, "reports", section.name, PICTURES.get(section.name, ""))
        if section.sentences:
            shown = picture if picture.is_file() else None
            found.append(Summary(section.name, list(section.sentences[:SENTENCES]), shown))
    return found


def require_known(studies: Sequence[str]) -> list[str]:
    """The studies in the order of the page, each once; ValueError, naming it, for an unknown one."""
    unknown = [name for name in studies if name not in STUDIES]
    if unknown:
        raise ValueError(f"study: {unknown[0]!r} is none that is reported; allowed are {', '.join(STUDIES)}")
    return [name for name in STUDIES if name in studies]


def _is_there(name: str) -> bool:
    """Whether the package of a study exists: one may be deleted, and the rest still works."""
    return name == "checkpoints" or find_spec(f"subspacelab.{name}") is not None


def _section(name: str, root: Path, settings: ReportConfig, params: object) -> Section:
    module = importlib.import_module(f"subspacelab.report.{name}")
    results = Results(root)
    section: Section = module.section(results)
    missing = (
        []
        if section.blocks or section.headlines
        else [f"There are no results of {name} here; dvc repro {module.STAGES[-1]} makes them."]
    )
    if name == "lowrank":
        section, more = _with_maps(section, root, settings)
        missing += more
    return replace(section, missing=missing, origin=section_origin(name, module.STAGES, results, params))  # type: ignore[arg-type]


def _with_maps(section: Section, root: Path, settings: ReportConfig) -> tuple[Section, list[str]]:
    """The section with the channel maps first, or with a sentence if features or networks are missing."""
    from subspacelab.report.maps import FEATURES, MODELS, channel_maps

    maps = channel_maps(root, pictures=settings.pictures, channels=settings.channels)
    if maps is None:
        return section, [f"No channel maps: {FEATURES} or {MODELS} is not here; dvc repro compare_lowrank makes them."]
    return replace(section, blocks=[maps, *section.blocks]), []
