"""`subspacelab lowrank ...`: the commands of lowrank."""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from subspacelab.core.flags import Rank, Seed, Track, with_settings
from subspacelab.lowrank.config import (
    CacheFeaturesConfig,
    CompareLowrankConfig,
    TrainLowrankConfig,
    VisualizeLowrankConfig,
)

app = typer.Typer(no_args_is_help=True, help="Vision features factorised as A @ B, against the SVD.")

FeaturesDir = Annotated[Path, typer.Option("--features", help="A feature cache made by `lowrank cache`.")]
ResultsDir = Annotated[Path, typer.Option(help="Each architecture has its folder in it.")]
Archs = Annotated[
    list[str] | None,
    typer.Option("--arch", help="ResMLP, MLP, AdaLoRA, Sketch or an alias; repeatable; by default all trained ones."),
]


@app.command()
@with_settings(CacheFeaturesConfig)
def cache(
    model_id: Annotated[
        str, typer.Option(help="A Qwen2.5-VL checkpoint: local folder, org/name@revision on the hub, or pipeline:NAME.")
    ],
    output_dir: Annotated[Path, typer.Option(help="Where shards, index.parquet and meta.json go.")] = Path(
        "data/features"
    ),
    *,
    settings: CacheFeaturesConfig,
    track: Track = True,
) -> None:
    """Computes the merged vision tokens of every picture.

    The language model is never read. An interrupted run continues. Several processes: accelerate launch -m
    subspacelab lowrank cache ...
    """
    from subspacelab.checkpoints import open_checkpoint
    from subspacelab.core.devices import choose_device, is_main_process
    from subspacelab.data.references import resolve_pictures
    from subspacelab.lowrank.display import print_cache, print_skipped
    from subspacelab.lowrank.extraction import CachePlan, cache_features
    from subspacelab.plotting.terminal import progress_bar, say_where
    from subspacelab.tracking import open_run

    checkpoint, s = open_checkpoint(model_id), settings
    params = {"model_id": model_id, "revision": checkpoint.source.revision} | asdict(s)
    with open_run(
        "lowrank", f"cache {checkpoint.source.name}", params=params, inputs=[s.images, checkpoint.source], enabled=track
    ) as tracker:
        pictures, device = resolve_pictures(s.images), choose_device(s.device)
        plan = CachePlan(pictures, s.image_size, s.limit, s.batch_size, decode_workers=s.decode_workers)
        log = tracker.log_metrics
        cached = cache_features(checkpoint, plan, output_dir, device=device, log=log, progress=progress_bar)
    if is_main_process():
        print_cache(cached)
        print_skipped(pictures)
        say_where(output_dir)


@app.command()
@with_settings(TrainLowrankConfig)
def train(
    context: typer.Context,
    features: FeaturesDir,
    arch: Annotated[str, typer.Option(help="ResMLP, MLP, AdaLoRA, Sketch, or an alias of one.")] = "ResMLP",
    rank: Rank = 128,
    seed: Seed = 42,
    results_dir: ResultsDir = Path("results"),
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on from the best model, by its own settings, optimizer and scheduler."),
    ] = False,
    *,
    settings: TrainLowrankConfig,
    track: Track = True,
) -> None:
    """Trains one network to give A and B in one pass.

    A training that was cut short continues by the same command. Writes best_model, last, history and pictures to
    <results-dir>/<arch>, and log/logs_<timestamp>. Several processes: accelerate launch -m subspacelab lowrank
    train ...
    """
    from subspacelab.lowrank.architectures import canonical_arch
    from subspacelab.lowrank.display import print_training
    from subspacelab.lowrank.features import Features
    from subspacelab.lowrank.logging import open_run_log, record_training
    from subspacelab.lowrank.plots import draw_training
    from subspacelab.lowrank.training import resume_training, train_into, validation_errors
    from subspacelab.plotting.terminal import progress_bar, say_where
    from subspacelab.tracking import open_run

    name, cached, s = canonical_arch(arch), Features(features), settings
    asked = {flag: value for flag, value in context.params.items() if is_given(context, flag)}
    params = dict(asked) if resume else asdict(s) | {"rank": rank, "seed": seed}
    params |= {"arch": name, "features": features, "resume": resume}
    with (
        open_run(
            "lowrank", f"{'resume' if resume else 'train'} {name}", params=params, inputs=[features], enabled=track
        ) as tracker,
        open_run_log(params, tracker.log_metrics) as (hand, log),
    ):
        job = partial(resume_training, epochs=s.epochs, asked=asked, device=s.device, compile=s.compile)
        job = job if resume else partial(train_into, rank=rank, seed=seed, settings=s)
        result = job(cached, results_dir, arch=name, log=log, progress=progress_bar)
        if hand is not None:
            hand.summary(result)
            pictures = draw_training(result, validation_errors(result, cached))
            record_training(result, cached, pictures, tracker)
    if hand is not None:
        print_training(result)
        say_where(result.folder)


def is_given(context: typer.Context, flag: str) -> bool:
    """Whether a flag was given on the command line."""
    source = context.get_parameter_source(flag)
    return source is not None and source.name != "DEFAULT"


@app.command()
@with_settings(CompareLowrankConfig)
def compare(
    features: FeaturesDir,
    arch: Archs = None,
    rank: Rank = 128,
    results_dir: ResultsDir = Path("results"),
    output_dir: Annotated[
        Path | None, typer.Option(help="Where table and picture go; <results-dir>/comparison if left out.")
    ] = None,
    *,
    settings: CompareLowrankConfig,
    track: Track = True,
) -> None:
    """Compares the SVD, trained networks and untrained controls.

    On the test pictures: similarity, cost, best epoch. Controls: a sketch and one basis for all pictures, each from
    the training pictures' PCA and at random; and every network as it was before training. Then what is read back of
    stored factors: bytes against cosine, and with --judge against the IoU of its language model. Writes
    comparison.csv, rate_distortion.csv, metrics.json, pictures.
    """
    from subspacelab.core.ownership import report_folder
    from subspacelab.lowrank.comparison import TABLES
    from subspacelab.lowrank.comparison import compare as run
    from subspacelab.lowrank.display import print_comparison
    from subspacelab.lowrank.features import Features
    from subspacelab.lowrank.logging import track_comparison
    from subspacelab.lowrank.storage_plots import PICTURES, draw_pictures
    from subspacelab.plotting.terminal import progress_bar, say_where
    from subspacelab.tracking import open_run

    where, s = output_dir or results_dir / "comparison", settings
    params = {"features": features, "arch": arch, "rank": rank, "results_dir": results_dir} | asdict(s)
    told: dict[str, object] = {"judge": _seen(where, s.judge), "images": _seen(where, s.images), "ranks": s.ranks}
    told |= {"judge_size": s.judge_size, "judged_formats": s.judged_formats}
    job = _job(where, features, results_dir, arch, rank=rank, raw_inputs=s.raw_inputs, **told)
    with open_run(
        "lowrank", f"compare r{rank}", params=params, inputs=[features, results_dir], enabled=track
    ) as tracker:
        cached = Features(features)
        _require_apart(where, features, results_dir)
        with report_folder(where, "lowrank compare", job, (*TABLES, *PICTURES)) as folder:
            result = run(cached, results_dir, archs=arch or (), rank=rank, progress=progress_bar, **asdict(s))
            result.save(folder)
            track_comparison(result, folder, draw_pictures(folder, result), tracker)
    print_comparison(result)
    say_where(where)


@app.command()
@with_settings(VisualizeLowrankConfig)
def visualize(
    features: FeaturesDir,
    arch: Archs = None,
    rank: Rank = 128,
    results_dir: ResultsDir = Path("results"),
    output_dir: Annotated[
        Path | None, typer.Option(help="Where the pictures go; <results-dir>/pictures if left out.")
    ] = None,
    *,
    settings: VisualizeLowrankConfig,
    track: Track = True,
) -> None:
    """Draws channels and errors of a picture, and the rank curve."""
    from subspacelab.core.ownership import report_folder
    from subspacelab.lowrank.features import Features
    from subspacelab.lowrank.logging import track_views
    from subspacelab.lowrank.plots import draw_views, view_names
    from subspacelab.lowrank.visualization import visualize as run
    from subspacelab.tracking import open_run

    where, s = output_dir or results_dir / "pictures", settings
    # Not the picture: those of several stand side by side.
    job = _job(where, features, results_dir, arch, rank=rank, channels=s.channels)
    params = {"features": features, "arch": arch, "rank": rank, "results_dir": results_dir} | asdict(s)
    with open_run(
        "lowrank", f"visualize r{rank}", params=params, inputs=[features, results_dir], enabled=track
    ) as tracker:
        cached = Features(features)
        _require_apart(where, features, results_dir)
        names = view_names(s.image_idx)
        with report_folder(where, "lowrank visualize", job, (*names, "rank_curve.json")) as folder:
            views = run(cached, results_dir, archs=arch or (), rank=rank, **asdict(s))
            views.save(folder)
            track_views(views, draw_views(folder, views), tracker)
    for name in names:
        typer.echo(where / name)


def _job(
    where: Path, features: Path, results_dir: Path, archs: list[str] | None, **settings: object
) -> dict[str, object]:
    """What a report is made of; the places as seen from it, so that all may move together."""
    from subspacelab.core.files import seen_from
    from subspacelab.lowrank.architectures import canonical_arch

    places = {"features": features, "results_dir": results_dir}
    seen = {name: seen_from(where, place) for name, place in places.items()}
    return {**seen, "arch": [canonical_arch(name) for name in archs or ()], **settings}


def _seen(where: Path, reference: str | None) -> str | None:
    """A reference to a place on this disk as seen from the report; any other as it is typed."""
    from subspacelab.core.files import seen_from

    return seen_from(where, Path(reference)) if reference and Path(reference).exists() else reference


def _require_apart(where: Path, features: Path, results_dir: Path) -> None:
    """ValueError if a report would go among the features or beside a network's weights."""
    from subspacelab.core.ownership import require_apart
    from subspacelab.lowrank.architectures import ALIASES

    require_apart(where, [features, *(results_dir / arch for arch in ALIASES)])
