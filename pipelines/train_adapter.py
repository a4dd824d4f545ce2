"""Stage `train_adapter@<method>`: trains the adapters of one method on sums at each rate and measures what they forget.

In: data/nullspace/init/<method>, data/checkpoints/llm, data/corpus. Out: data/nullspace/trained/<method>
(seed-<seed>/ft, of the rate chosen on validation), reports/nullspace/knowledge/<method>.json (of every training).
Time: 40 s on 2 cores for each training of the demo. A killed training continues to the same bytes.
"""

import _checkout  # noqa: F401, I001  (first: the code of this checkout)

from pathlib import Path

from subspacelab.pipeline.process import run_stage_script
from subspacelab.nullspace.config import TrainAdapterConfig
from subspacelab.nullspace.logging import record_seeds
from subspacelab.nullspace.train_seeds import train_seeds
from subspacelab.pipeline.stage import open_stage
from subspacelab.plotting.terminal import progress_bar

BUILT = Path("data/nullspace/init")
TRAINED = Path("data/nullspace/trained")
KNOWLEDGE = Path("reports/nullspace/knowledge")


def main(method: str) -> None:
    with open_stage("train_adapter", TrainAdapterConfig, experiment="nullspace", item=method) as stage:
        log = stage.tracker.log_metrics
        result = train_seeds(BUILT / method, stage.work_dir, settings=stage.params, log=log, progress=progress_bar)
        result.save(KNOWLEDGE / f"{method}.json")
        record_seeds(result, stage.tracker)
        result.move(TRAINED / method)


if __name__ == "__main__":
    run_stage_script(main)
