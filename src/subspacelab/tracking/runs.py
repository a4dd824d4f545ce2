"""Opens a tracked run, for a command or for a stage of the pipeline, and ends it whatever happens."""

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subspacelab.tracking.context import git_tags, process_tags, stage_context
from subspacelab.tracking.null import NullTracker
from subspacelab.tracking.outs import out_tags
from subspacelab.tracking.parent import find_or_create_parent
from subspacelab.tracking.protocol import Tracker
from subspacelab.tracking.reaper import reap_dead_runs
from subspacelab.tracking.signals import signals_as_exceptions, status_of
from subspacelab.tracking.store import (
    is_server,
    require_server,
    set_mlflow_defaults,
    store_lock,
    store_uri,
    without_secrets,
)

if TYPE_CHECKING:
    from subspacelab.tracking.mlflow_tracker import MlflowTracker


@contextmanager
def open_run(
    experiment: str,
    name: str,
    *,
    params: Mapping[str, object],
    tags: Mapping[str, str] | None = None,
    enabled: bool = True,
) -> Iterator[Tracker]:
    """Yields a tracker whose run ends FINISHED, FAILED (an exception) or KILLED (Ctrl-C, SIGTERM, SIGHUP).

    With `enabled=False`, with TRACKING=off, and in all processes but the first of several, nothing is recorded and
    MLflow is not imported. Raises ValueError in one line, before any work, when the store cannot be used.
    """
    if not (enabled and tracking_wanted()):
        yield NullTracker()
        return
    with signals_as_exceptions():
        uri, labels = usable_store(), {**process_tags(), **git_tags(), **(tags or {})}
        with open_store(uri, [experiment]) as (client, ids):
            run = client.create_run(ids[experiment], tags=labels, run_name=name)
        tracker = _tracker(client, uri, run.info.run_id)
        with _recorded(tracker, tracker.end):
            tracker.log_params(params)
            yield tracker


@contextmanager
def open_stage_run(
    stage: str,
    experiment: str,
    *,
    params: Mapping[str, object],
    outs: Sequence[Path],
    study: str,
    pipeline_params: Mapping[str, object] | None = None,
    enabled: bool = True,
) -> Iterator[Tracker]:
    """As `open_run`, for a DVC stage: with the tags that lead back to DVC, beneath the run of the whole pipeline.

    The parent, in the experiment `pipeline`, is found or created by `pipeline.id`; it takes `pipeline_params` (all
    of params.yaml, say; else `params`) and the headline metrics, and is ended with each stage. A run that finishes
    carries the md5 of each path in `outs`, as dvc.lock has it. What must hold for the result to count, an
    `InputGuard.check()` for instance, belongs inside the block.
    """
    if not (enabled and tracking_wanted()):
        yield NullTracker()
        return
    with signals_as_exceptions():
        uri, context = usable_store(), stage_context(stage)
        labels = {**process_tags(), **git_tags(), "study": study}
        with open_store(uri, [experiment, "pipeline"]) as (client, ids):
            parent = find_or_create_parent(client, ids["pipeline"], context, labels)
            links = {"mlflow.parentRunId": parent.run_id, "pipeline.id": context.pipeline_id}
            run = client.create_run(ids[experiment], tags={**labels, **context.tags(), **links}, run_name=context.stage)
        tracker = _tracker(client, uri, run.info.run_id, parent.run_id)
        with _recorded(tracker, lambda status: tracker.end(status, parent.status_after(status))):
            tracker.log_params(params)
            tracker.log_parent(pipeline_params or params, parent.params)
            yield tracker
            tracker.set_tags(out_tags(outs))


@contextmanager
def _recorded(tracker: Tracker, end: Callable[[str], None]) -> Iterator[None]:
    try:
        yield
    except BaseException as e:
        status = status_of(e)
        if status == "FAILED":
            tracker.set_tags({"error": without_secrets(f"{type(e).__name__}: {e}")})
        end(status)
        raise
    end("FINISHED")


def tracking_wanted() -> bool:
    """Whether this process records: not with TRACKING=off, and of several processes only the first."""
    off = os.environ.get("TRACKING", "on").lower() in {"off", "0", "false", "no"}
    return not off and os.environ.get("RANK", "0") == "0"  # accelerate launch sets RANK


def usable_store() -> str:
    """The store's URI; raises ValueError in one line when MLflow is missing or its server does not answer."""
    if importlib.util.find_spec("mlflow") is None:
        raise ValueError(
            "mlflow is not installed, so the run cannot be tracked; pip install 'subspacelab[pipeline]',"
            " or run without tracking (TRACKING=off or --no-track)"
        )
    uri = store_uri()
    if is_server(uri):
        require_server(uri)
    set_mlflow_defaults()
    return uri


@contextmanager
def open_store(uri: str, experiments: Sequence[str], *, reap: bool = True) -> Iterator[tuple[Any, dict[str, str]]]:
    """Yields the client and the experiments' ids, holding the store's lock; ends the dead runs of this host first."""
    from subspacelab.tracking.mlflow_tracker import connect, experiment_id, one_line, preload

    preload(uri)
    with one_line(uri), store_lock(uri):
        client = connect(uri)
        ids = {name: experiment_id(client, uri, name) for name in experiments}
        if reap:
            reap_dead_runs(client)
        yield client, ids


def _tracker(client: Any, uri: str, run_id: str, parent_id: str | None = None) -> "MlflowTracker":
    from subspacelab.tracking.mlflow_tracker import MlflowTracker

    return MlflowTracker(client, uri, run_id, parent_id)
