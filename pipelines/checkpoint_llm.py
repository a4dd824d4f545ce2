"""Stage `checkpoint_llm`: a small Llama learns the corpus and its facts; a hub study records a commit instead.

In: data/corpus. Out: data/checkpoints/llm (a Hugging Face folder), reports/checkpoints/llm.json.
Time: about 1.5 minutes on 2 cores. A killed training continues to the same bytes.
"""

import _checkout  # noqa: F401, I001  (first: the code of this checkout)

from pathlib import Path

from subspacelab.checkpoints.references import REPORTS, take_from_hub
from subspacelab.synthetic.facts.evaluation import evaluate_llm
from subspacelab.synthetic.facts.llm import LlmTraining, train_llm
from subspacelab.synthetic.logging import record_llm
from subspacelab.pipeline.process import run_stage_script
from subspacelab.pipeline.stage import open_stage

CORPUS = Path("data/corpus")
OUT = Path("data/checkpoints/llm")


def main() -> None:
    with open_stage("checkpoint_llm", LlmTraining, experiment="demo") as stage:
        if take_from_hub(stage.study.reference("llm"), OUT):
            return
        log = stage.tracker.log_metrics
        train_llm(CORPUS, stage.work_dir, training=stage.params, seed=stage.seed, log=log).save(OUT)
        evaluation = evaluate_llm(OUT, CORPUS)
        evaluation.save(REPORTS)
        record_llm(evaluation, OUT, stage.tracker)


if __name__ == "__main__":
    run_stage_script(main)
