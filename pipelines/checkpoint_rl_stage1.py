"""Stage `checkpoint_rl_stage1`: base trained further by GRPO, reward IoU; a hub study records a commit instead.

In: data/checkpoints/base. Out: data/checkpoints/rl_stage1, reports/checkpoints/rl_stage1.json.
Time: about 2 minutes on 2 cores. A killed training continues to the same bytes.
"""

import _checkout  # noqa: F401, I001  (first: the code of this checkout)

from pathlib import Path

from subspacelab.checkpoints.references import REPORTS, take_from_hub
from subspacelab.synthetic.display import print_checkpoint
from subspacelab.synthetic.grounding.evaluation import evaluate_checkpoint
from subspacelab.synthetic.logging import record_checkpoint
from subspacelab.synthetic.grounding.plots import draw_checkpoint
from subspacelab.synthetic.grounding.reinforce import RlTraining, train_rl
from subspacelab.pipeline.process import run_stage_script
from subspacelab.pipeline.stage import open_stage
from subspacelab.plotting.terminal import progress_bar

BEFORE = Path("data/checkpoints/base")
OUT = Path("data/checkpoints/rl_stage1")


def main() -> None:
    with open_stage("checkpoint_rl_stage1", RlTraining, experiment="demo") as stage:
        if take_from_hub(stage.study.reference("rl_stage1"), OUT):
            return
        trained = train_rl(
            BEFORE,
            stage.work_dir,
            training=stage.params,
            stage="rl_stage1",
            seed=stage.seed,
            log=stage.tracker.log_metrics,
            progress=progress_bar,
        )
        trained.save(OUT)
        evaluation = evaluate_checkpoint(
            OUT, seed=stage.seed, num_scenes=stage.params.evaluated, before=BEFORE, progress=progress_bar
        )
        evaluation.save(REPORTS)
        picture = draw_checkpoint(OUT / "predicted_boxes.png", evaluation)
        record_checkpoint(evaluation, OUT, picture, stage.tracker)
    print_checkpoint(evaluation)


if __name__ == "__main__":
    run_stage_script(main)
