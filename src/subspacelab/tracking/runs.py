"""Opens a tracked run, for a command or a stage of the pipeline, and ends it in every case."""

import importlib.util
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subspacelab.core.callbacks import Log
from subspacelab.tracking.context import (
    StageContext,
    git_tags,
    is_alive,
    process_tags,
    signals_as_exceptions,
    stage_context,
    status_of,
)
from subspacelab.tracking.datasets import LOCK, named_inputs, stage_inputs
from subspacelab.tracking.dvc_files import out_tags
from subspacelab.tracking.protocol import NullTracker, Tracker
from subspacelab.tracking.store import (
    is_server,
    require_server,
    set_mlflow_defaults,
    shown,
    store_folder,
    store_lock,
    store_uri,
    without_secrets,
)
from subspacelab.tracking.system import system_wanted, watched_system

if TYPE_CHECKING:
    from subspacelab.tracking.datasets import Given
    from subspacelab.tracking.mlflow_tracker import MlflowTracker


_BAD = ("FAILED", "KILLED")


@dataclass(frozen=True)
class Parent:
    """The run of a pipeline, as a stage finds it."""

    run_id: str
    """Its id in the store."""
    params: Mapping[str, str]
    """Params recorded by earlier stages; the store allows only one value per param."""
    metrics: Mapping[str, float]
    """Headline metrics recorded by earlier stages."""
    status_before: str
    """FAILED or KILLED if an earlier stage of the same DVC process ended so, else FINISHED."""

    def status_after(self, child: str) -> str:
        """The parent's status after a child ended with `child`: the first one that is not FINISHED is kept."""
        return self.status_before if self.status_before in _BAD else child


def find_or_create_parent(client: Any, experiment_id: str, context: StageContext, tags: Mapping[str, str]) -> Parent:
    """Finds the parent by its `pipeline.id`, or creates it, and marks it RUNNING in this process.

    `client` is an `MlflowClient`. The caller holds `store_lock`, since several stages may start at once.
    """
    mine = {**tags, **context.experiment_tags(), "pipeline.owner": context.owner}
    wanted = f"tags.`pipeline.id` = '{context.pipeline_id}'"
    for run in client.search_runs([experiment_id], filter_string=wanted, max_results=1):
        same_owner = run.data.tags.get("pipeline.owner") == context.owner
        before = run.info.status if same_owner and run.info.status in _BAD else "FINISHED"
        for key in ("host", "pid", "pid.start", "pipeline.owner"):
            client.set_tag(run.info.run_id, key, mine[key])
        client.update_run(run.info.run_id, status="RUNNING")
        return Parent(run.info.run_id, run.data.params, run.data.metrics, before)
    ids = {"pipeline.id": context.pipeline_id, "pipeline.role": "parent"}
    name = context.exp_name or f"{tags.get('study', 'pipeline')} {datetime.now():%Y-%m-%d %H:%M:%S}"
    run = client.create_run(experiment_id, tags=mine | ids, run_name=name)
    return Parent(run.info.run_id, {}, {}, "FINISHED")


def reap_dead_runs(client: Any) -> list[str]:
    """Sets RUNNING runs of this host to KILLED if their process is gone; returns their ids.

    `client` is an `MlflowClient`. Runs without the tags `host`, `pid`, `pid.start` belong to others and are not
    changed.
    """
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    mine = f"attributes.status = 'RUNNING' and tags.host = '{socket.gethostname()}'"
    dead = [
        run.info.run_id for run in client.search_runs(experiments, filter_string=mine) if not is_alive(run.data.tags)
    ]
    for run_id in dead:
        client.set_terminated(run_id, "KILLED")
    return dead


@contextmanager
def mlflow_run(
    experiment: str, name: str, params: Mapping[str, object] | None = None, *, inputs: "Sequence[Given]" = ()
) -> Iterator[Log]:
    """An MLflow run for the time of a block; yields the `log(metrics, step)` that trainings take.

    The store is `MLFLOW_TRACKING_URI`, or `mlruns/` of the project. `inputs` are recorded as the run's data sets:
    paths, or what the commands take. Raises ValueError in one line, before any work, when the store cannot be used.

        with mlflow_run("lowrank", "a sketch", {"rank": 128}, inputs=["data/features"]) as log:
            lowrank.train(features, arch="Sketch", rank=128, log=log)
    """
    with open_run(experiment, name, params=params or {}, inputs=inputs) as tracker:
        yield tracker.log_metrics


@contextmanager
def open_run(
    experiment: str,
    name: str,
    *,
    params: Mapping[str, object],
    tags: Mapping[str, str] | None = None,
    inputs: "Sequence[Given]" = (),
    enabled: bool = True,
) -> Iterator[Tracker]:
    """Yields a tracker whose run ends FINISHED, FAILED (an exception) or KILLED (Ctrl-C, SIGTERM, SIGHUP).

    `inputs` are what the run reads, as a person named it; they are recorded as its data sets. With `enabled=False`,
    with TRACKING=off, and in all processes but the first of several, nothing is recorded and MLflow is not imported.
    Raises ValueError in one line, before any work, when the store cannot be used.
    """
    if not (enabled and tracking_wanted()):
        yield NullTracker()
        return
    with signals_as_exceptions():
        uri, labels = usable_store(), {**process_tags(), **git_tags(), **(tags or {})}
        with open_store(uri, [experiment]) as (client, ids):
            run = client.create_run(ids[experiment], tags=labels, run_name=name)
        tracker = _tracker(client, uri, run_id=run.info.run_id, labels=_version_labels(labels))
        with _recorded(tracker, tracker.end):
            tracker.log_params(params)
            tracker.log_inputs(named_inputs(inputs))
            yield tracker


@contextmanager
def open_stage_run(
    stage: str,
    experiment: str,
    *,
    params: Mapping[str, object],
    outs: Sequence[Path],
    study: str,
    inputs: Sequence[Path] = (),
    description: str = "",
    pipeline_params: Mapping[str, object] | None = None,
    enabled: bool = True,
) -> Iterator[Tracker]:
    """As `open_run`, for a DVC stage: with the tags that lead back to DVC, beneath the run of the whole pipeline.

    The parent, in the experiment `pipeline`, is found or created by `pipeline.id`; it takes `pipeline_params` (all
    of params.yaml, say; else `params`) and the headline metrics, and is ended with each stage. What the stage reads,
    `inputs`, are its data sets; `description` says what it does. A run that finishes carries the md5 of each path in
    `outs`, as dvc.lock has it. What must hold for the result to count, an `InputGuard.check()` for instance, belongs
    inside the block.
    """
    if not (enabled and tracking_wanted()):
        yield NullTracker()
        return
    with signals_as_exceptions():
        uri, context = usable_store(), stage_context(stage)
        labels = {**process_tags(), **git_tags(), "study": study, **context.experiment_tags()}
        with open_store(uri, [experiment, "pipeline"]) as (client, ids):
            parent = find_or_create_parent(client, ids["pipeline"], context, labels)
            links = {"mlflow.parentRunId": parent.run_id, "pipeline.id": context.pipeline_id}
            run = client.create_run(ids[experiment], tags={**labels, **context.tags(), **links}, run_name=context.stage)
        tracker = _tracker(
            client,
            uri,
            run_id=run.info.run_id,
            parent_id=parent.run_id,
            description=description,
            parent_description=_about(labels),
            parent_metrics=parent.metrics,
            labels=_version_labels(labels),
        )
        with _recorded(tracker, lambda status: tracker.end(status, parent.status_after(status))):
            tracker.log_params(params)
            tracker.log_parent(pipeline_params or params, parent.params)
            tracker.log_inputs(stage_inputs(inputs, lock=LOCK if context.mode else None))
            yield tracker
            tracker.set_tags(out_tags(outs))


def _about(labels: Mapping[str, str]) -> str:
    """What a pipeline's run is, and how its files come here again."""
    what = f"The pipeline on the study `{labels['study']}`, at commit `{labels.get('git.commit', 'unknown')[:10]}`"
    what += " with changes that are not committed." if labels.get("git.dirty") == "true" else "."
    return f"{what} `{labels['dvc.apply']}` brings its files." if "dvc.apply" in labels else what


def _version_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Tags that link a model's version to its study, experiment and code."""
    return {key: labels[key] for key in ("study", "dvc.exp.name", "dvc.apply", "git.commit") if key in labels}


@contextmanager
def _recorded(tracker: "MlflowTracker", end: Callable[[str], None]) -> Iterator[None]:
    try:
        with watched_system(tracker.send_metrics) if system_wanted() else nullcontext():
            yield
    except BaseException as e:
        status = status_of(e)
        if status == "FAILED":
            tracker.set_tags({"error": without_secrets(f"{type(e).__name__}: {e}")})
        end(status)
        raise
    end("FINISHED")


def tracking_wanted() -> bool:
    """Whether this process records: not with TRACKING=off, and only the first of several processes."""
    off = os.environ.get("TRACKING", "on").lower() in {"off", "0", "false", "no"}
    return not off and os.environ.get("RANK", "0") == "0"  # accelerate launch sets RANK


def usable_store() -> str:
    """The store's URI; ValueError, in one line, if MLflow is missing or its server does not answer."""
    if importlib.util.find_spec("mlflow") is None:
        raise ValueError(
            "mlflow is not installed, so the run cannot be tracked; pip install '.[pipeline]' in the clone,"
            " or run without tracking (TRACKING=off or --no-track)"
        )
    uri = store_uri()
    if is_server(uri):
        require_server(uri)
    set_mlflow_defaults()
    return uri


@contextmanager
def open_store(uri: str, experiments: Sequence[str], *, reap: bool = True) -> Iterator[tuple[Any, dict[str, str]]]:
    """Yields client and experiments' ids while holding the store's lock; ends the dead runs of this host first."""
    from subspacelab.tracking.mlflow_tracker import connect, experiment_id, one_line, preload

    preload(uri)
    with one_line(uri), store_lock(uri):
        client = connect(uri)
        ids = {name: experiment_id(client, uri, name) for name in experiments}
        if reap:
            reap_dead_runs(client)
        yield client, ids


def _tracker(client: Any, uri: str, **place: Any) -> "MlflowTracker":
    """`place` as of `RunPlace`."""
    from subspacelab.tracking.mlflow_tracker import MlflowTracker, RunPlace

    return MlflowTracker(client, uri, RunPlace(**place))


def ui_command(host: str, port: int) -> tuple[list[str], dict[str, str], str]:
    """The command, the environment and the first page of the MLflow UI on `host:port`; creates a store if need be.

    The page is that of the pipeline's runs in the view for model training: whatever an experiment's kind, MLflow 3.17
    opens its view for language-model applications unless the address, or an earlier click, says otherwise. Raises
    ValueError when runs go to a server, which has a UI of its own.
    """
    uri = usable_store()
    if is_server(uri):
        raise ValueError(f"runs are recorded on {shown(uri)}: open that address in a browser")
    with open_store(uri, ["pipeline"]) as (_, ids):
        page = f"http://{host}:{port}/#/experiments/{ids['pipeline']}/runs?workflowType=machine_learning"
    where = ["--artifacts-destination", (store_folder(uri) / "artifacts").as_uri()]
    command = [sys.executable, "-m", "mlflow", "server", *where, "--host", host, "--port", str(port)]
    # Without job execution the server is 2 processes instead of about 10, of 240 MB each.
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    # Not as a word of the command, which `ps` shows to everybody: the address of a database may hold its password.
    return [*command, "--workers", "1"], {**os.environ, **quiet, "MLFLOW_BACKEND_STORE_URI": uri}, page
