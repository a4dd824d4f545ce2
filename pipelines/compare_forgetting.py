"""Stage `compare_forgetting`: every method of the study of forgetting in one table and one picture.

In: reports/smollm2/methods. Out: reports/smollm2 (results.json, curves.csv, knowledge.csv, costs.csv, pareto.png).
Time: a few seconds.
"""

import _checkout  # noqa: F401, I001  (first: the code of this checkout)

from pathlib import Path

from subspacelab.nullspace.config import ForgettingSettings
from subspacelab.nullspace.forgetting.display import print_forgetting
from subspacelab.nullspace.forgetting.logging import track_forgetting
from subspacelab.nullspace.forgetting.plots import draw_pareto
from subspacelab.nullspace.forgetting.results import Forgetting, merged
from subspacelab.pipeline.params import NoSettings, read_params
from subspacelab.pipeline.process import run_stage_script
from subspacelab.pipeline.stage import open_stage

OUT = Path("reports/smollm2")
PIPELINE = Path("pipelines/smollm2/dvc.yaml")


def main() -> None:
    with open_stage(
        "compare_forgetting", NoSettings, experiment="nullspace", study="smollm2", pipeline=PIPELINE
    ) as stage:
        methods = read_params(study="smollm2").section("measure_forgetting", ForgettingSettings).methods
        found = merged([Forgetting.load(OUT / "methods" / method) for method in methods])
        found.save(OUT)
        draw_pareto(OUT / "pareto.png", found)
        track_forgetting(found, [OUT / "pareto.png"], stage.tracker)
    print_forgetting(found)


if __name__ == "__main__":
    run_stage_script(main)
