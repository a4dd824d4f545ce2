"""Stage `checkpoint_base`: a small Qwen2.5-VL learns to draw boxes around words; a hub study records a commit instead.

Out: data/checkpoints/base (a Hugging Face folder), reports/checkpoints/base.json. Time: about 3.5 minutes
on 2 cores. A killed training continues to the same bytes.
"""

import _checkout  # noqa: F401, I001  (first: the code of this checkout)

from pathlib import Path

from subspacelab.synthetic.grounding.base import BaseTraining, train_base
from subspacelab.checkpoints.references import REPORTS, take_from_hub
from subspacelab.synthetic.display import print_checkpoint
from subspacelab.synthetic.grounding.evaluation import evaluate_checkpoint
from subspacelab.synthetic.logging import record_checkpoint
from subspacelab.synthetic.grounding.plots import draw_checkpoint
from subspacelab.pipeline.process import run_stage_script
from subspacelab.pipeline.stage import open_stage
from subspacelab.plotting.terminal import progress_bar

OUT = Path("data/checkpoints/base")


def main() -> None:
    with open_stage("checkpoint_base", BaseTraining, experiment="demo") as stage:
        if take_from_hub(stage.study.reference("base"), OUT):
            return
        log = stage.tracker.log_metrics
        trained = train_base(stage.work_dir, training=stage.params, seed=stage.seed, log=log, progress=progress_bar)
        trained.save(OUT)
        evaluation = evaluate_checkpoint(OUT, seed=stage.seed, num_scenes=stage.params.evaluated, progress=progress_bar)
        evaluation.save(REPORTS)
        picture = draw_checkpoint(OUT / "predicted_boxes.png", evaluation)
        record_checkpoint(evaluation, OUT, picture, stage.tracker)
    print_checkpoint(evaluation)


if __name__ == "__main__":
    run_stage_script(main)
