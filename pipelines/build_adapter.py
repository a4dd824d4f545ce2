"""Stage `build_adapter@<method>`: builds an untrained adapter per seed on the study's language model.

In: data/checkpoints/llm, data/corpus. Out: data/nullspace/init/<method>/seed-<seed> (adapter_config.json,
adapter_model.safetensors, nullspace.json, README.md). Time: about 10 s on 2 cores for each adapter.
"""

import _checkout  # noqa: F401, I001  (first: the code of this checkout)

from pathlib import Path

from subspacelab.checkpoints import resolve_reference
from subspacelab.pipeline.process import run_stage_script
from subspacelab.core.files import move_folder
from subspacelab.nullspace.building import build_adapter
from subspacelab.nullspace.logging import track_built
from subspacelab.nullspace.config import BuildAdapterConfig
from subspacelab.pipeline.stage import open_stage
from subspacelab.plotting.terminal import progress_bar

OUT = Path("data/nullspace/init")


def main(method: str) -> None:
    with open_stage("build_adapter", BuildAdapterConfig, experiment="nullspace", item=method) as stage:
        settings = stage.params
        source = resolve_reference("pipeline:llm")
        for seed in settings.seeds:
            folder = stage.work_dir / method / f"seed-{seed}"
            built = build_adapter(
                source,
                folder,
                method=method,
                rank=settings.rank or stage.rank,
                seed=seed,
                settings=settings,
                progress=progress_bar,
            )
            track_built(built, stage.tracker, seed=None if seed == settings.seeds[0] else seed)
        move_folder(stage.work_dir / method, OUT / method)


if __name__ == "__main__":
    run_stage_script(main)
