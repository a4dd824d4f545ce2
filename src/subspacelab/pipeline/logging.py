"""Tracking of a search: a run with one child run per trial; also reads the metrics of running trials."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from subspacelab.pipeline.search_space import Axis, as_trial
from subspacelab.pipeline.sweep import Trial
from subspacelab.pipeline.tuning import Tried, Value, Watch, finished
from subspacelab.tracking.context import git_tags, process_tags, signals_as_exceptions, status_of
from subspacelab.tracking.mlflow_tracker import MlflowTracker
from subspacelab.tracking.runs import open_store, tracking_wanted, usable_store

EXPERIMENT = "tune"
"""MLflow experiment for searches."""
_STATUS = {TrialState.COMPLETE: "FINISHED", TrialState.PRUNED: "KILLED", TrialState.FAIL: "FAILED"}


@contextmanager
def recorded_study(study: optuna.Study, params: dict[str, object]) -> Iterator["StudyRecord | None"]:
    """The run of a search, found or created, RUNNING within the block; None without tracking."""
    if not tracking_wanted():
        yield None
        return
    with signals_as_exceptions():
        uri = usable_store()
        with open_store(uri, [EXPERIMENT]) as (client, ids):
            record = StudyRecord(client, uri, ids[EXPERIMENT], study)
        record.begin(params)
        try:
            yield record
        except BaseException as e:
            record.end(status_of(e))
            raise
        record.end("FINISHED")


class StudyRecord:
    """The runs of one search, in MLflow's experiment `home` (an id); `client` is an `MlflowClient`."""

    def __init__(self, client: Any, uri: str, home: str, study: optuna.Study) -> None:
        """Finds the search's run by its name, or creates it."""
        self.client, self._uri, self._home, self._study = client, uri, home, study
        self._tags = {**process_tags(), **git_tags(), "tune.study": study.study_name}
        wanted = f"tags.`tune.study` = '{study.study_name}' and tags.`tune.role` = 'parent'"
        found = client.search_runs([home], filter_string=wanted, max_results=1)
        tags = self._tags | {"tune.role": "parent"}
        run = found[0] if found else client.create_run(home, tags=tags, run_name=study.study_name)
        self._run_id, self._present = str(run.info.run_id), run.data.params

    def begin(self, params: dict[str, object]) -> None:
        """Marks the run as RUNNING in this process; the settings of the search are recorded once."""
        for key, value in self._tags.items():
            self.client.set_tag(self._run_id, key, value)
        self.client.update_run(self._run_id, status="RUNNING")
        tracker = self._tracker(self._run_id)
        tracker.log_params({key: value for key, value in params.items() if key not in self._present})

    def log_trials(self, axes: Sequence[Axis], tried: Tried, metric: str) -> None:
        """Creates a child run for each finished trial that has none, and records the best value so far."""
        filter_string = f"tags.`mlflow.parentRunId` = '{self._run_id}'"
        children = self.client.search_runs([self._home], filter_string=filter_string, max_results=50_000)
        there = {run.data.tags["tune.number"] for run in children}
        for trial in finished(self._study):
            if str(trial.number) not in there:
                self._log_trial(trial, as_trial(axes, trial.params), tried, metric)
        if values := [t for t in finished(self._study) if t.state is TrialState.COMPLETE]:
            tracker = self._tracker(self._run_id)
            tracker.log_metrics({metric: self._study.best_value}, len(values))
            tracker.flush()

    def _log_trial(self, trial: FrozenTrial, values: Trial, tried: Tried, metric: str) -> None:
        name = tried.name(trial.number, values)
        own = {
            "tune.number": str(trial.number),
            "tune.state": trial.state.name,
            "tune.apply": tried.apply(name, values),
        }
        tags = self._tags | own | {"mlflow.parentRunId": self._run_id}
        tracker = self._tracker(str(self.client.create_run(self._home, tags=tags, run_name=name).info.run_id))
        tracker.log_params({setting.key: setting.value for setting in values.settings})
        if trial.value is not None:
            tracker.log_metrics({metric: trial.value})
        tracker.end(_STATUS[trial.state])

    def log_pictures(self, pictures: Sequence[Path]) -> None:
        """Records the pictures as artifacts of the search's run."""
        tracker = self._tracker(self._run_id)
        for picture in pictures:
            tracker.log_artifact(picture)

    def end(self, status: str) -> None:
        """Ends the search's run; a later call may continue it."""
        self._tracker(self._run_id).end(status)

    def _tracker(self, run_id: str) -> MlflowTracker:
        return MlflowTracker(self.client, self._uri, run_id)


def watch_runs(client: Any, watched: str) -> Watch:
    """Function from a trial's name to the recorded values of `watched`, `[STAGE:]METRIC`, in its present run."""
    stage, _, metric = watched.rpartition(":")

    def values(name: str) -> list[float]:
        run = _run_of(client, name, "RUNNING", stage, metric)
        if run is None:
            return []
        points = sorted(client.get_metric_history(run.info.run_id, metric), key=lambda point: point.step)
        return [float(point.value) for point in points]

    return values


def read_runs(client: Any, metric: str) -> Value:
    """Function from a trial's name to the last value of `metric` in its finished run."""

    def value(name: str) -> float | None:
        run = _run_of(client, name, "FINISHED", "", metric)
        return None if run is None else float(run.data.metrics[metric])

    return value


def _run_of(client: Any, trial: str, status: str, stage: str, metric: str) -> Any | None:
    """The newest run of a trial that has this status and the metric."""
    wanted = f"tags.`tune.trial` = '{trial}' and attributes.status = '{status}'"
    if stage:
        wanted += f" and tags.`dvc.stage` = '{stage}'"
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, filter_string=wanted, order_by=["attributes.start_time DESC"])
    return next((run for run in runs if metric in run.data.metrics), None)
