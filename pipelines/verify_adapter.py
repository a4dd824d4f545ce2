"""Stage `verify_adapter@<method>-<init|trained>`: is B in the null space, and was anything learned?

In: data/nullspace/<init|trained>/<method> (its first seed), data/checkpoints/llm, data/corpus.
Out: reports/nullspace/verify/<method>-<state>.json. Time: about 10 s on 2 cores for the demo.
"""

import _checkout  # noqa: F401, I001  (first: the code of this checkout)

from pathlib import Path

from subspacelab.core.devices import choose_device
from subspacelab.pipeline.process import run_stage_script
from subspacelab.nullspace.config import VerifyAdapterConfig
from subspacelab.nullspace.paths import first_adapter
from subspacelab.nullspace.logging import track_verification
from subspacelab.nullspace.results import write_stats
from subspacelab.pipeline.stage import open_stage
from subspacelab.nullspace.verification import verify_adapter
from subspacelab.plotting.terminal import progress_bar

ADAPTERS = Path("data/nullspace")
OUT = Path("reports/nullspace/verify")


def main(item: str) -> None:
    method, _, state = item.rpartition("-")
    with open_stage("verify_adapter", VerifyAdapterConfig, experiment="nullspace", item=item) as stage:
        folder = first_adapter(ADAPTERS / state / method)
        device = choose_device(stage.params.device)
        found = verify_adapter(folder, stage.params, seed=stage.seed, device=device, progress=progress_bar)
        write_stats(OUT / f"{item}.json", found)
        track_verification(found, state, stage.tracker)


if __name__ == "__main__":
    run_stage_script(main)
