"""Stage `compare_stats`: all methods before and after training, and the remaining knowledge of each.

In: reports/nullspace/verify, reports/nullspace/knowledge. Out: reports/nullspace (stats.csv, details.json,
metrics.json, knowledge.csv, knowledge_trainings.csv, knowledge_equal_task.csv, knowledge_differences.csv, and the
pictures before_after.png, bx_ratio.png, knowledge.png). Time: a few seconds.
"""

import _checkout  # noqa: F401, I001  (first: the code of this checkout)

from pathlib import Path

from subspacelab.core.files import write_json
from subspacelab.pipeline.process import run_stage_script
from subspacelab.nullspace.comparison import compare_methods
from subspacelab.nullspace.config import BuildAdapterConfig, CompareStatsConfig
from subspacelab.nullspace.display import print_comparison, print_knowledge
from subspacelab.nullspace.logging import track_study
from subspacelab.nullspace.plots import draw_pictures
from subspacelab.pipeline.params import read_params
from subspacelab.pipeline.stage import open_stage

VERIFIED = Path("reports/nullspace/verify")
KNOWLEDGE = Path("reports/nullspace/knowledge")
OUT = Path("reports/nullspace")


def main() -> None:
    with open_stage("compare_stats", CompareStatsConfig, experiment="nullspace") as stage:
        methods = stage.params.methods or read_params().section("build_adapter", BuildAdapterConfig).methods
        found = compare_methods(VERIFIED, KNOWLEDGE, methods)
        found.save(OUT, metrics="details.json")
        write_json(OUT / "metrics.json", found.headline)
        track_study(found, draw_pictures(OUT, found), stage.tracker)
    print_comparison(found.stats)
    print_knowledge(found.knowledge, found.equal_task)


if __name__ == "__main__":
    run_stage_script(main)
