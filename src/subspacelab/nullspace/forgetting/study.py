"""The study: every rival at each of its rates on the first seed, then at the rate chosen on validation, continued."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from subspacelab.checkpoints import Source
from subspacelab.core.callbacks import Log, Progress, no_log, no_progress
from subspacelab.core.devices import choose_device
from subspacelab.core.files import read_json, remove_folder, remove_partials, write_beside, write_json
from subspacelab.core.ownership import require_apart, require_own_entries, require_same_job, sole_writer
from subspacelab.models.causal_lm import load_tokenizer
from subspacelab.models.fine_tuning import Example
from subspacelab.models.lora_folder import META
from subspacelab.models.tokens import read_model_config, require_readable
from subspacelab.models.trainables import Base, Trainable
from subspacelab.nullspace.building import build_adapter
from subspacelab.nullspace.config import BuildSettings, ForgettingSettings
from subspacelab.nullspace.encoding import with_response
from subspacelab.nullspace.forgetting.curve import Course, Curve, Setup, read_seconds, train_curve
from subspacelab.nullspace.forgetting.materials import Materials, read_materials
from subspacelab.nullspace.forgetting.methods import Rival, rival_of
from subspacelab.nullspace.forgetting.prompts import encode_example
from subspacelab.nullspace.forgetting.results import RESULTS, TABLES, Forgetting, name_of
from subspacelab.nullspace.forgetting.scores import BaseRecord, Scores, base_record, score
from subspacelab.nullspace.forgetting.texts import CalibrationKind, calibration_texts
from subspacelab.nullspace.inits import method_of

JOB, BASE, TRAININGS, PICTURE = "job.json", "base.safetensors", "trainings", "pareto.png"
ADAPTERS, CALIBRATION = "adapters", "calibration"
OWN = (JOB, BASE, TRAININGS, PICTURE, ADAPTERS, CALIBRATION, RESULTS, *TABLES)
"""All that a study's folder holds."""
EXTENDED = ("methods", "seeds", "rate_factors", "rate_by_method", "device")
"""Settings that say which trainings there are, not what one of them is: a study may be extended by them."""


@dataclass(frozen=True)
class Bench:
    """What all trainings of a study share."""

    source: Source
    """The base."""
    folder: Path
    """Where adapters, trainings and the base's record lie."""
    settings: ForgettingSettings
    """What is studied."""
    tokenizer: Any
    """The base's."""
    materials: Materials
    """What models are scored on."""
    base: BaseRecord
    """What the base says to it."""
    examples: list[Example]
    """Rows of the new task."""

    def loading(self) -> Base:
        """How the base is loaded."""
        return _loading(self.source, self.settings)

    def score(self, model: Any) -> Scores:
        """What a model knows."""
        return score(model, self.materials, self.base, batch_size=self.settings.score_batch_size)


def run_study(
    source: Source,
    folder: Path,
    *,
    settings: ForgettingSettings,
    after: Callable[[Forgetting], None] = lambda _: None,
    log: Log = no_log,
    progress: Progress = no_progress,
) -> Forgetting:
    """Trains every method of the study on the base `source` and scores it on the way.

    Each trains at three rates on the first seed, all at their first one before any at the next; the other seeds train
    at the rate that validation problems choose. What is finished stands in `folder`, so that a killed study goes on,
    and a finished one may be given more methods or seeds. `after(found)` is called after each training. `log` gets the
    curves of the losses, each name under that of its training. ValueError, in one line: unknown methods, a folder of
    another study, whatever reading the base refuses.
    """
    methods = list(dict.fromkeys(settings.methods))
    for method in methods:
        if rival_of(method).float32 and settings.dtype != "float32":
            raise ValueError(
                f"dtype={settings.dtype!r}: {method} trains the weights themselves; take float32, or leave it out"
            )
    _, *others = dict.fromkeys(settings.seeds)
    require_apart(folder, [source.folder])
    with sole_writer(folder):
        require_own_entries(folder, OWN, "a study of forgetting")
        remove_partials(folder)
        bench = open_bench(source, folder, settings)
        curves: list[Curve] = []

        def train_all(trainings: Iterable[tuple[str, float, int]]) -> Forgetting:
            for method, rate, seed in trainings:
                curves.append(train(bench, method, rate, seed, log=log, progress=progress))
                after(_found(bench, curves))
            return _found(bench, curves)

        tried = train_all(_first_trainings(settings))
        found = train_all((method, tried.chosen[method], seed) for seed in others for method in methods)
        if (folder / ADAPTERS).exists():
            remove_folder(folder / ADAPTERS)
    return found


def open_bench(source: Source, folder: Path, settings: ForgettingSettings) -> Bench:
    """Reads and draws what all trainings share; asks the base once."""
    config, tokenizer = read_model_config(source.folder), load_tokenizer(source.folder)
    materials = read_materials(
        config,
        tokenizer,
        settings.task,
        num_train=settings.steps * settings.batch_size,
        num_validation=settings.num_validation,
        num_test=settings.num_test,
        num_windows=settings.num_windows,
        seq_len=settings.seq_len,
        seed=settings.task_seed,
    )
    _require_job(folder, source, settings, materials)
    if (folder / BASE).is_file():
        base = BaseRecord.load(folder / BASE)
    else:
        model, batch_size = _loading(source, settings).load(), settings.score_batch_size
        base = base_record(model, materials, max_probes=settings.max_probes, batch_size=batch_size)
        del model
        base.save(folder / BASE)
    encoded = (encode_example(tokenizer, row, settings.max_length) for row in materials.task.train)
    examples = with_response(encoded, settings.max_length)
    require_readable(config, tokenizer, [e.input_ids for e in examples], remedy="lower max_length")
    return Bench(source, folder, settings, tokenizer, materials, base, examples)


def _require_job(folder: Path, source: Source, settings: ForgettingSettings, materials: Materials) -> None:
    """ValueError if trainings of another study stand in `folder`; what another one had begun, without any, goes."""
    job = {key: value for key, value in asdict(settings).items() if key not in EXTENDED}
    job |= {"base": source.reference, "revision": source.revision, "materials": materials.fingerprint}
    found = read_json(folder / JOB) if (folder / JOB).is_file() else job
    if found != job:
        if (folder / TRAININGS).exists():
            require_same_job(folder, found, job)
        for name in (ADAPTERS, BASE):
            if (folder / name).exists():
                remove_folder(folder / name)
    write_json(folder / JOB, job)


def train(
    bench: Bench, method: str, rate: float, seed: int, *, log: Log = no_log, progress: Progress = no_progress
) -> Curve:
    """One training, or what is left of it."""
    rival, settings = rival_of(method), bench.settings
    course = Course(settings.steps, settings.batch_size, settings.warmup_ratio, settings.kl_weight)
    setup = Setup(
        made=lambda: _put(bench, rival, seed, progress),
        examples=bench.examples,
        pad=bench.materials.pad,
        score=bench.score,
        weight_decay=rival.weight_decay,
        penalised=rival.penalised,
    )
    name, curve = name_of(method, rate, seed), Curve(method, rate, seed, 0, [])

    def named(metrics: Mapping[str, float], step: int) -> None:
        log({f"{name}/{key}": value for key, value in metrics.items()}, step)

    return train_curve(curve, setup, course, bench.folder / TRAININGS / name, log=named, progress=progress)


def rates_of(method: str, settings: ForgettingSettings) -> list[float]:
    """The learning rates that a method is tried at, in the order of `rate_factors`, with two digits."""
    middle = settings.rate_by_method.get(method, rival_of(method).rate)
    return [float(f"{middle * factor:.2g}") for factor in settings.rate_factors]


def _first_trainings(settings: ForgettingSettings) -> list[tuple[str, float, int]]:
    """(method, rate, seed) of the first seed: every method at its first rate, then every one at the next."""
    rates = {method: rates_of(method, settings) for method in settings.methods}
    places = range(len(settings.rate_factors))
    return list(dict.fromkeys((method, rates[method][i], settings.seeds[0]) for i in places for method in rates))


def _found(bench: Bench, curves: Sequence[Curve]) -> Forgetting:
    names = [name_of(c.method, c.rate, c.seed) for c in curves]
    seconds = {name: read_seconds(bench.folder / TRAININGS / name) for name in names}
    num_validation = len(bench.materials.task.validation)
    return Forgetting(_called(bench.source), num_validation, bench.base.scores, list(curves), seconds)


def _put(bench: Bench, rival: Rival, seed: int, progress: Progress) -> Trainable:
    """The method on a base that was loaded for it."""
    rank = rival.rank or bench.settings.rank
    adapter = _built(bench, rival, rank, seed, progress) if rival.adapter else Path()
    return rival.put(bench.loading(), adapter, rank, seed)


def _built(bench: Bench, rival: Rival, rank: int, seed: int, progress: Progress) -> Path:
    """The folder of the rival's untrained adapter; several rivals and all rates share one."""
    assert rival.adapter is not None
    settings = bench.settings
    calibrated = method_of(rival.adapter).needs_calibration
    parts = [rival.adapter, f"rank-{rank}", *(rival.targets or ()), *([rival.calibration] if calibrated else [])]
    folder = bench.folder / ADAPTERS / "-".join(parts) / f"seed-{seed}"
    if not (folder / META).is_file():
        build = BuildSettings(
            calib_dataset=str(_calibration(bench, rival.calibration)) if calibrated else None,
            calib_loader_size=settings.calib_loader_size,
            seq_len=settings.calib_seq_len,
            targets=list(rival.targets) if rival.targets else None,
            allow_few_tokens=settings.allow_few_tokens,
            device=settings.device,
        )
        build_adapter(
            bench.source, folder, method=rival.adapter, rank=rank, seed=seed, settings=build, progress=progress
        )
    return folder


def _calibration(bench: Bench, kind: CalibrationKind) -> Path:
    """A folder with the calibration text of that kind, all of it for calibration."""
    folder = bench.folder / CALIBRATION / kind
    with write_beside(folder / "train.jsonl") as partial:
        rows = (json.dumps({"text": text}) + "\n" for text in calibration_texts(kind, bench.tokenizer))
        partial.write_text("".join(rows), encoding="utf-8")
    return folder


def _loading(source: Source, settings: ForgettingSettings) -> Base:
    return Base(source.folder, getattr(torch, settings.dtype), choose_device(settings.device))


def _called(source: Source) -> str:
    """A base as results name it: its place on the hub, or its folder's name, wherever that lies."""
    return f"{source.reference}@{source.revision}" if source.revision else source.name
