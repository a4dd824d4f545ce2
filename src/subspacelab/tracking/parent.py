"""The run that stands for a whole pipeline run: one row per experiment, above the stages' own runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from subspacelab.tracking.context import StageContext

_BAD = ("FAILED", "KILLED")


@dataclass(frozen=True)
class Parent:
    """A pipeline's run as a stage finds it."""

    run_id: str
    """Its id in the store."""
    params: Mapping[str, str]
    """What stages before have recorded on it; the store allows a param one value only."""
    status_before: str
    """FAILED or KILLED when an earlier stage of the same DVC process ended so, else FINISHED."""

    def status_after(self, child: str) -> str:
        """The parent's status when a child ends with `child`: the first that is not FINISHED stays."""
        return self.status_before if self.status_before in _BAD else child


def find_or_create_parent(client: Any, experiment_id: str, context: StageContext, tags: Mapping[str, str]) -> Parent:
    """Finds the parent by its `pipeline.id`, or creates it, and sets it RUNNING in the name of this process.

    `client` is an `MlflowClient`. The caller holds `store_lock`, since several stages may start at a time.
    """
    mine = {**tags, **context.experiment_tags(), "pipeline.owner": context.owner}
    wanted = f"tags.`pipeline.id` = '{context.pipeline_id}'"
    for run in client.search_runs([experiment_id], filter_string=wanted, max_results=1):
        same_owner = run.data.tags.get("pipeline.owner") == context.owner
        before = run.info.status if same_owner and run.info.status in _BAD else "FINISHED"
        for key in ("host", "pid", "pid.start", "pipeline.owner"):
            client.set_tag(run.info.run_id, key, mine[key])
        client.update_run(run.info.run_id, status="RUNNING")
        return Parent(run.info.run_id, run.data.params, before)
    ids = {"pipeline.id": context.pipeline_id, "pipeline.role": "parent"}
    run = client.create_run(experiment_id, tags=mine | ids, run_name=context.exp_name or context.pipeline_id)
    return Parent(run.info.run_id, {}, "FINISHED")
