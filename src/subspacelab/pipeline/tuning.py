"""A search for good parameters: Optuna proposes values, DVC or a command runs them, a database stores the results."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from hashlib import sha256
from importlib.util import find_spec
from itertools import product
from math import isfinite, prod
from pathlib import Path
from typing import Any, Literal, Protocol

import optuna
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from subspacelab.pipeline.dvc_process import dvc_command, dvc_environment, experiment_commit
from subspacelab.pipeline.experiments import fetched, numbers_of
from subspacelab.pipeline.search_space import Axis, Metric, as_trial
from subspacelab.pipeline.sweep import Setting, Trial, trial_words
from subspacelab.tracking.context import TRIAL, is_alive, process_tags

Direction = Literal["minimize", "maximize"]
FOLDER = Path(".cache/tune")
"""Folder for databases, logs and pictures of searches."""
OWNER = "owner of trial "
"""Attribute of an Optuna study that names the process of the trial with this number."""
POLL = 1.0
"""Seconds between two checks of a running trial."""


class Tried(Protocol):
    """A way of running trials."""

    def name(self, number: int, trial: Trial) -> str:
        """Name of the trial's result."""

    def command(self, name: str, trial: Trial) -> list[str]:
        """Command line of the trial's process."""

    def apply(self, name: str, trial: Trial) -> str:
        """The command that restores the result."""


@dataclass(frozen=True)
class Experiments:
    """Each trial is an experiment of DVC in a temporary copy; an existing experiment is not run again."""

    targets: Sequence[str]
    """Stages to run."""
    metric: Metric
    """The metric of the search."""

    def name(self, number: int, trial: Trial) -> str:
        return trial.name

    def command(self, name: str, trial: Trial) -> list[str]:
        return dvc_command(*trial_words(trial, self.targets))

    def value(self, name: str) -> float | None:
        """The metric of an experiment; None if it does not exist."""
        rev = experiment_commit(name)
        if rev is None:
            return None
        with fetched(rev, self.metric.file) as copy:
            return numbers_of({str(self.metric.file): copy}).get(str(self.metric))

    def apply(self, name: str, trial: Trial) -> str:
        return shlex.join(["dvc", "exp", "apply", name])


@dataclass(frozen=True)
class Commands:
    """Each trial is a command of `subspacelab`, without DVC."""

    words: Sequence[str]
    """The command; `{trial}` in it is replaced by the trial's name, so that each trial has its own folder."""
    study: str
    """Name of the search; the trials' names begin with it."""

    def name(self, number: int, trial: Trial) -> str:
        return f"{self.study}-{number}"

    def command(self, name: str, trial: Trial) -> list[str]:
        given = [word.replace("{trial}", name) for word in self.words]
        flags = [word for s in trial.settings for word in (f"--{s.key.replace('_', '-')}", s.value)]
        return [sys.executable, "-m", "subspacelab", *given, *flags]

    def apply(self, name: str, trial: Trial) -> str:
        return shlex.join(self.command(name, trial)[2:])


Value = Callable[[str], float | None]
"""Function from a trial's name to the metric of its result; None if there is none."""
Watch = Callable[[str], list[float]]
"""Function from a trial's name to its intermediate values so far; smaller is better."""


@dataclass
class Search:
    """A search and how it is run."""

    study: optuna.Study
    """Optuna study that stores the trials."""
    axes: Sequence[Axis]
    """The parameters to vary."""
    tried: Tried
    """How trials are run."""
    value: Value
    """Reads the metric of a trial."""
    total: int
    """Number of trials in all, earlier calls included."""
    watch: Watch | None = None
    """Reads intermediate values, by which trials are pruned; None: no pruning."""
    told: Callable[[], None] = lambda: None
    """Called after each trial."""
    quiet: bool = False
    """Whether each trial's output goes to a file, as is needed when several run at once."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, jobs: int = 1) -> None:
        """Runs trials until `total` are done, `jobs` at a time; unfinished trials of a killed search come first.

        A failed trial is recorded as failed and does not stop the others. Ctrl-C ends the running trials; the next call
        runs them again.
        """
        stop = threading.Event()
        with ThreadPoolExecutor(jobs) as workers:
            running = [workers.submit(self._work, stop) for _ in range(jobs)]
            try:
                for each in running:
                    each.result()
            except BaseException:
                stop.set()
                raise

    def _work(self, stop: threading.Event) -> None:
        while not stop.is_set() and (found := self._next()):
            number, trial, live = found
            name = self.tried.name(number, trial)
            _say(f"[{number + 1} of {self.total}] {name}")
            state, value, why = self._try(name, trial, live, stop)
            if stop.is_set() and state is not TrialState.COMPLETE:
                return  # left as it is for the next call
            with self._lock:
                self.study.tell(number, value, state, skip_if_finished=True)
                self.told()
            _say(f"[{number + 1} of {self.total}] {name}: {f'{value:.6g}' if value is not None else why}")

    def _next(self) -> tuple[int, Trial, optuna.Trial | None] | None:
        """An unfinished trial of a dead process, or a new one; None if there are enough."""
        with self._lock:
            trials, owners = self.study.get_trials(deepcopy=False), self.study.user_attrs
            for trial in trials:
                if trial.state is TrialState.RUNNING and _is_left(trial, owners.get(f"{OWNER}{trial.number}")):
                    self.study.set_user_attr(f"{OWNER}{trial.number}", process_tags())
                    return trial.number, as_trial(self.axes, trial.params), None
            if sum(trial.state is not TrialState.WAITING for trial in trials) >= self.total:
                return None
            live = self.study.ask({axis.key: axis.distribution() for axis in self.axes})
            self.study.set_user_attr(f"{OWNER}{live.number}", process_tags())
            return live.number, as_trial(self.axes, live.params), live

    def _try(
        self, name: str, trial: Trial, live: optuna.Trial | None, stop: threading.Event
    ) -> tuple[TrialState, float | None, str]:
        value = self.value(name)
        if value is None:
            with self._process(name, self.tried.command(name, trial)) as process:
                while process.poll() is None:
                    if stop.wait(POLL):
                        return TrialState.FAIL, None, "stopped"
                    if live and self.watch and self._hopeless(name, live):
                        return TrialState.PRUNED, None, "given up (pruned)"
            if process.returncode:
                return TrialState.FAIL, None, f"failed with exit code {process.returncode}; going on"
            value = self.value(name)
        if value is None or not isfinite(value):
            return TrialState.FAIL, None, f"failed: its metric is {'missing' if value is None else value}; going on"
        return TrialState.COMPLETE, value, ""

    def _hopeless(self, name: str, live: optuna.Trial) -> bool:
        assert self.watch is not None
        sign = 1 if self.study.direction is optuna.study.StudyDirection.MINIMIZE else -1
        values = self.watch(name)
        for step, value in enumerate(values):
            if isfinite(value):
                live.report(sign * value, step)  # told twice for one step, Optuna keeps the first
        return bool(values) and live.should_prune()

    @contextmanager
    def _process(self, name: str, words: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
        """A process in its own group; if the block ends early, it gets SIGINT, as from Ctrl-C, and is waited for."""
        with ExitStack() as stack:
            out: Any = sys.stderr
            if self.quiet:
                log = FOLDER / self.study.study_name / f"{name}.log"
                log.parent.mkdir(parents=True, exist_ok=True)
                out = stack.enter_context(log.open("wb"))
            environment = dvc_environment() | {TRIAL: name}
            process = subprocess.Popen(words, env=environment, stdout=out, stderr=out, start_new_session=True)
            try:
                yield process
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGINT)
                process.wait()


def open_study(
    name: str,
    storage: str | None,
    *,
    axes: Sequence[Axis],
    job: str,
    direction: Direction,
    sampler: str = "tpe",
    pruner: str = "none",
    seed: int = 42,
) -> optuna.Study:
    """Creates or continues the search of that name in `storage` (a database URL; None: a file under .cache).

    `job` describes the search: ValueError if the search of that name has another one. The sampler of a continued search
    draws new values, not those of its start.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if storage is None:
        FOLDER.mkdir(parents=True, exist_ok=True)
        storage = f"sqlite:///{FOLDER / 'studies.db'}"
    try:
        study = optuna.create_study(
            study_name=name,
            storage=storage,
            direction=direction,
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner() if pruner == "median" else optuna.pruners.NopPruner(),
        )
        study.sampler = _sampler(sampler, axes, seed + len(study.get_trials(deepcopy=False)))
        known = study.user_attrs.get("job", job)
        study.set_user_attr("job", known)
        if sampler == "grid" and known == job:
            for values in product(*(axis.values for axis in axes)):
                study.enqueue_trial(dict(zip((a.key for a in axes), values, strict=True)), skip_if_exists=True)
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as e:
        raise ValueError(f"`storage` cannot be used ({str(e).splitlines()[0]}); give the URL of a database") from e
    if known != job:
        raise ValueError(f"search {name!r} is of {known}; give this one another `name`")
    return study


def _sampler(kind: str, axes: Sequence[Axis], seed: int) -> optuna.samplers.BaseSampler:
    if kind == "tpe":
        return optuna.samplers.TPESampler(seed=seed)
    if kind == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if kind == "cmaes":
        if find_spec("cmaes") is None:
            raise ValueError("`sampler` cmaes needs the package cmaes; pip install '.[tune]' in the clone")
        return optuna.samplers.CmaEsSampler(seed=seed)
    if others := [axis.key for axis in axes if axis.kind != "choice"]:
        raise ValueError(f"`sampler` grid takes choices alone; {others[0]} has none: give choice:a,b,c")
    return optuna.samplers.RandomSampler(seed=seed)  # of nothing: every combination waits in the queue


def name_of(what: str, job: str) -> str:
    """Default name of a search: the same job gives the same name."""
    return f"{re.sub(r'[^A-Za-z0-9_.@-]+', '-', what)[:40]}-{sha256(job.encode()).hexdigest()[:6]}"


def grid_size(axes: Sequence[Axis]) -> int:
    """Number of combinations of the choices."""
    return prod(len(axis.values) for axis in axes)


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """The finished trials, earliest first."""
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]


def importances(study: optuna.Study) -> dict[str, float]:
    """The share of each parameter in the variance of the values (functional ANOVA, Hutter et al. 2014), largest first.

    Empty if fewer than 4 trials have different values.
    """
    values = {t.value for t in finished(study) if t.state is TrialState.COMPLETE}
    if len(values) < 4:
        return {}
    return optuna.importance.get_param_importances(study, evaluator=optuna.importance.PedAnovaImportanceEvaluator())


def show_plan(axes: Sequence[Axis], tried: Tried, total: int) -> list[str]:
    """The parameters that a search would vary, and the command of one trial."""
    first = Trial(tuple(Setting(axis.key, axis.values[0]) for axis in axes))
    varied = [f"#   {axis}" for axis in axes]
    command = tried.command(tried.name(0, first), first)
    return [f"# {total} trials of", *varied, shlex.join(["dvc", *command[3:]] if "dvc" in command[2] else command[2:])]


def _is_left(trial: FrozenTrial, owner: Any) -> bool:
    """Whether no process works on the trial; without an owner, after a minute: its process died before its mark."""
    if owner is None:
        return trial.datetime_start is not None and datetime.now() - trial.datetime_start > timedelta(minutes=1)
    return bool(owner["host"] == socket.gethostname() and not is_alive(owner))


def _say(text: str) -> None:
    print(f"tune: {text}", file=sys.stderr, flush=True)
