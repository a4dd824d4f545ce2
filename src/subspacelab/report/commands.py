"""`subspacelab report`: all results on one page."""

from pathlib import Path
from typing import Annotated

import typer

from subspacelab.core.flags import with_settings
from subspacelab.report.config import ReportConfig


@with_settings(ReportConfig)
def report(
    studies: Annotated[
        list[str] | None,
        typer.Argument(help="checkpoints, rotation, lowrank, nullspace, norms; default: all with results."),
    ] = None,
    output: Annotated[Path, typer.Option(help="The HTML file.")] = Path("report.html"),
    *,
    settings: ReportConfig,
) -> None:
    """This project's results as one interactive HTML page.

    The page needs no network and can be sent. It reads reports/, and data/ for the channel maps. A study without
    results is listed as such. The stage `report` of the pipeline writes the same to reports/report.html, without
    the commit.
    """
    from subspacelab.core.files import seen_from
    from subspacelab.core.ownership import report_folder
    from subspacelab.report.building import build_report, require_known
    from subspacelab.tracking.context import git_tags

    if output.is_dir():
        raise ValueError(f"--output {output}: a folder; give the name of a file")
    chosen = require_known(studies or [])
    job = {"project": seen_from(output.parent, Path()), "studies": chosen}
    with report_folder(output.parent, f"report {output.name}", job, [output.name]) as folder:
        page = build_report(studies=chosen, settings=settings, commit=git_tags())
        (folder / output.name).write_text(page, encoding="utf-8")
    print(f"{output}: {len(page.encode()) / 1e6:.1f} MB; it opens in any browser, without a network")
