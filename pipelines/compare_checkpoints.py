"""Stage `compare_checkpoints`: IoU of the three checkpoints and of the best constant box, recall of the llm.

In: reports/checkpoints/<checkpoint>.json. Out: reports/checkpoints/metrics.json; checkpoints
from the hub are not evaluated and left out. Time: seconds.
"""

import _checkout  # noqa: F401, I001  (first: the code of this checkout)

from pathlib import Path

from subspacelab.core.files import read_json, write_json
from subspacelab.pipeline.params import NoSettings
from subspacelab.pipeline.process import run_stage_script
from subspacelab.pipeline.stage import open_stage

OUT = Path("reports/checkpoints")


def main() -> None:
    with open_stage("compare_checkpoints", NoSettings, experiment="demo") as stage:
        metrics: dict[str, float] = {}
        for name in ("base", "rl_stage1", "rl_stage2"):
            figures = read_json(OUT / f"{name}.json")
            if "mean_iou" in figures:
                metrics |= {"constant_iou": figures["constant_iou"], f"{name}_iou": figures["mean_iou"]}
        llm = read_json(OUT / "llm.json")
        metrics |= {"llm_recall": llm["recall"]} if "recall" in llm else {}
        write_json(OUT / "metrics.json", metrics)
        stage.tracker.log_headline(metrics)


if __name__ == "__main__":
    run_stage_script(main)
