"""Stage `report`: the results of all studies as one interactive HTML page, which needs no network.

In: reports/<study>, data/features, data/lowrank/results. Out: reports/report.html. Time: about 10 s on 2 cores.
"""

import _checkout  # noqa: F401, I001  (first: the code of this checkout)

from pathlib import Path

from subspacelab.core.files import write_beside
from subspacelab.pipeline.process import run_stage_script
from subspacelab.pipeline.stage import open_stage
from subspacelab.report.building import read_page, require_plotly, summaries
from subspacelab.report.config import ReportConfig
from subspacelab.report.page import render

OUT = Path("reports/report.html")


def main() -> None:
    with open_stage("report", ReportConfig, experiment="demo") as stage:
        require_plotly()
        page = read_page(settings=stage.params)
        with write_beside(OUT) as partial:
            partial.write_text(render(page), encoding="utf-8")
        stage.tracker.log_page(OUT, summaries(page))


if __name__ == "__main__":
    run_stage_script(main)
