"""Stage `compare_norms`: the token embedding's norm before and after training, and every norm layer's scale over depth.

In: reports/norms/<checkpoint>.json. Out: reports/norms/metrics.json, reports/norms/scales.csv. Time: seconds.
"""

import _checkout  # noqa: F401, I001  (first: the code of this checkout)

from pathlib import Path

from subspacelab.core.files import read_json, write_csv, write_json
from subspacelab.norms.comparison import headline, scale_curves
from subspacelab.pipeline.params import NoSettings
from subspacelab.pipeline.process import run_stage_script
from subspacelab.pipeline.stage import open_stage

OUT = Path("reports/norms")
CHECKPOINTS = ("base", "rl_stage1", "rl_stage2", "llm")
COMPARED = ("base", "rl_stage2")


def main() -> None:
    with open_stage("compare_norms", NoSettings, experiment="norms") as stage:
        reports = {name: read_json(OUT / f"{name}.json") for name in CHECKPOINTS}
        metrics = headline({name: reports[name] for name in COMPARED})
        write_json(OUT / "metrics.json", metrics)
        write_csv(OUT / "scales.csv", scale_curves(reports))
        stage.tracker.log_headline(metrics)


if __name__ == "__main__":
    run_stage_script(main)
