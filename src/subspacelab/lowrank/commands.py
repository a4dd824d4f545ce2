"""`subspacelab lowrank ...`: the commands of lowrank."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from subspacelab.lowrank.config import TrainLowrankConfig

app = typer.Typer(no_args_is_help=True, help="Vision features factorised as A @ B by networks, against the SVD.")

Track = Annotated[bool, typer.Option("--track/--no-track", help="Record the run in MLflow.")]
FeaturesDir = Annotated[Path, typer.Option("--features", help="A feature cache made by `lowrank cache`.")]
Rank = Annotated[int, typer.Option(min=1, help="Rank r of A [tokens, r] and B [r, dim].")]
ResultsDir = Annotated[Path, typer.Option(help="Each architecture has its folder in it.")]
Archs = Annotated[
    list[str] | None,
    typer.Option("--arch", help="ResMLP, MLP, AdaLoRA, Sketch or an alias; repeatable; by default all trained ones."),
]


@app.command()
def cache(
    model_id: Annotated[
        str, typer.Option(help="A Qwen2.5-VL checkpoint: local folder, org/name@revision on the hub, or pipeline:NAME.")
    ],
    images: Annotated[
        str, typer.Option(help="A parquet file or folder (textVQA_groundingtask_bbox), a .jsonl, a folder of pictures.")
    ],
    output_dir: Annotated[Path, typer.Option(help="Where shards, index.parquet and meta.json go.")] = Path(
        "data/features"
    ),
    image_size: Annotated[int, typer.Option(help="Pixels per side; 448 gives 256 tokens.")] = 448,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first pictures.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures per pass of the tower.")] = 8,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    track: Track = True,
) -> None:
    """Merged vision tokens of every picture, from the vision tower alone; the language model is never read.

    An interrupted run continues. Several processes: accelerate launch -m subspacelab lowrank cache ...
    """
    from subspacelab.checkpoints import resolve_reference
    from subspacelab.core.devices import choose_device
    from subspacelab.core.distributed import is_main_process
    from subspacelab.data.pictures import describe_skipped, skipped_files
    from subspacelab.data.references import resolve_pictures
    from subspacelab.lowrank.cache import CachePlan, cache_features
    from subspacelab.lowrank.display import print_cache
    from subspacelab.tracking import open_run

    source = resolve_reference(model_id)
    params = {"model_id": model_id, "revision": source.revision, "images": images, "image_size": image_size}
    params |= {"limit": limit, "batch_size": batch_size, "device": device}
    with open_run("lowrank", f"cache {source.name}", params=params, enabled=track) as tracker:
        plan = CachePlan(resolve_pictures(images), image_size, limit, batch_size)
        meta = cache_features(source, plan, output_dir, device=choose_device(device), log=tracker.log_metrics)
    if is_main_process():
        print_cache(meta)
        skipped = skipped_files(plan.pictures)
        if skipped:
            typer.echo(f"not taken for pictures: {describe_skipped(skipped)}")


@app.command()
def train(
    context: typer.Context,
    features: FeaturesDir,
    arch: Annotated[str, typer.Option(help="ResMLP, MLP, AdaLoRA, Sketch, or an alias of one.")] = "ResMLP",
    rank: Rank = 128,
    batch_size: Annotated[int, typer.Option(help="Pictures per step.")] = 8,
    epochs: Annotated[int, typer.Option(help="Passes over the pictures; with --resume additional ones.")] = 20,
    lr: Annotated[float, typer.Option(help="AdamW's learning rate.")] = 1e-4,
    lambda_B: Annotated[float, typer.Option("--lambda-B", help="Weight of mean(B^2).")] = 1e-4,
    lambda_ortho: Annotated[float, typer.Option(help="Weight of the orthogonality of A's columns.")] = 1e-3,
    weight_decay: Annotated[float, typer.Option(help="AdamW's weight decay.")] = 1e-5,
    patience: Annotated[int, typer.Option(help="Epochs without improvement before stopping.")] = 10,
    dropout: Annotated[float, typer.Option(help="In the hidden layers.")] = 0.1,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of weights, order, dropout, and of the split.")] = 42,
    results_dir: ResultsDir = Path("results"),
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on from the best model, by its own settings, optimizer and scheduler."),
    ] = False,
    start: Annotated[
        str, typer.Option(help="pca: shortcuts start at the training pictures' PCA basis; random: plain networks.")
    ] = "pca",
    normalisation: Annotated[str, typer.Option(help="rms, layernorm or none.")] = "rms",
    refine: Annotated[bool, typer.Option("--refine", help="Ablation: a full layer after A @ B.")] = False,
    power_steps: Annotated[int, typer.Option(help="Sketch: power steps.")] = 2,
    use_rank_allocator: Annotated[
        bool, typer.Option("--use-rank-allocator", help="AdaLoRA: take columns of A out by their importance.")
    ] = False,
    allocator_init_warmup: Annotated[int, typer.Option(help="Steps before anything is masked.")] = 1000,
    allocator_final_warmup: Annotated[int, typer.Option(help="Last steps, at the final budget.")] = 1000,
    allocator_mask_interval: Annotated[int, typer.Option(help="Steps between masks.")] = 20,
    allocator_keep_ratio: Annotated[float, typer.Option(help="Share of the rank that stays.")] = 0.25,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    compile: Annotated[bool, typer.Option("--compile/--no-compile", help="torch.compile on a GPU.")] = True,
    track: Track = True,
) -> None:
    """Trains one network to give A and B in one pass. A training that was cut short continues by the same command.

    Writes best_model, last, history and pictures to <results-dir>/<arch>, and log/logs_<timestamp>.
    Several processes: accelerate launch -m subspacelab lowrank train ...
    """
    flags = locals()
    from dataclasses import asdict

    from subspacelab.core.distributed import is_main_process
    from subspacelab.lowrank.architectures import canonical_arch
    from subspacelab.lowrank.display import print_training
    from subspacelab.lowrank.features import Features
    from subspacelab.lowrank.logging import record_training
    from subspacelab.lowrank.run_log import open_run_log
    from subspacelab.lowrank.train import resume_training
    from subspacelab.lowrank.train import train as run
    from subspacelab.tracking import open_run

    settings = training_settings(flags)
    name = canonical_arch(arch)
    cached = Features(features)
    asked = {flag: flags[flag] for flag in context.params if context.get_parameter_source(flag).name != "DEFAULT"}  # type: ignore[union-attr]
    params = dict(asked) if resume else asdict(settings) | {"rank": rank, "seed": seed}
    params |= {"arch": name, "features": features, "resume": resume}
    with open_run("lowrank", f"{'resume' if resume else 'train'} {name}", params=params, enabled=track) as tracker:
        with open_run_log(params, tracker.log_metrics) as (hand, log):
            if resume:
                result = resume_training(
                    cached, results_dir, arch=name, epochs=epochs, asked=asked, device=device, compile=compile, log=log
                )
            else:
                result = run(cached, results_dir, arch=name, rank=rank, seed=seed, settings=settings, log=log)
            if hand is not None:
                hand.summary(result)
        if is_main_process():
            record_training(result, cached, tracker)
    if is_main_process():
        print_training(result)


def training_settings(flags: Mapping[str, Any]) -> "TrainLowrankConfig":
    """The settings among the flags of `train`; those of the rank allocator begin with `allocator_`."""
    from subspacelab.core.settings import settings_from_flags
    from subspacelab.lowrank.config import TrainLowrankConfig

    prefix = "allocator_"
    allocator = {name.removeprefix(prefix): value for name, value in flags.items() if name.startswith(prefix)}
    return settings_from_flags(TrainLowrankConfig, {**flags, "allocator": allocator}, where="train")


@app.command()
def compare(
    features: FeaturesDir,
    arch: Archs = None,
    rank: Rank = 128,
    results_dir: ResultsDir = Path("results"),
    output_dir: Annotated[
        Path | None, typer.Option(help="Where table and picture go; <results-dir>/comparison if left out.")
    ] = None,
    raw_inputs: Annotated[
        bool, typer.Option("--raw-inputs", help="Ablation: compare on raw features, whatever the networks know.")
    ] = False,
    track: Track = True,
) -> None:
    """SVD, trained networks and controls that are not trained, on the test pictures: similarity, cost, best epoch.

    Controls: a sketch and one basis for all pictures, each from the training pictures' PCA and at random; and every
    network as it was before training. Writes comparison.csv, metrics.json and svd_nn_comparison.png.
    """
    from subspacelab.core.ownership import report_folder
    from subspacelab.lowrank.compare import TABLES
    from subspacelab.lowrank.compare import compare as run
    from subspacelab.lowrank.display import print_comparison
    from subspacelab.lowrank.features import Features
    from subspacelab.lowrank.logging import track_comparison
    from subspacelab.lowrank.plots import COMPARISON, draw_comparison
    from subspacelab.tracking import open_run

    where = output_dir or results_dir / "comparison"
    params = {"features": features, "arch": arch, "rank": rank, "results_dir": results_dir, "raw_inputs": raw_inputs}
    job = _job(where, features, results_dir, arch, rank=rank, raw_inputs=raw_inputs)
    with open_run("lowrank", f"compare r{rank}", params=params, enabled=track) as tracker:
        cached = Features(features)
        _require_apart(where, features, results_dir)
        with report_folder(where, "lowrank compare", job, (*TABLES, COMPARISON)) as folder:
            result = run(cached, results_dir, archs=arch or (), rank=rank, raw_inputs=raw_inputs)
            result.save(folder)
            track_comparison(result, folder, draw_comparison(folder, result), tracker)
    print_comparison(result)


@app.command()
def visualize(
    features: FeaturesDir,
    arch: Archs = None,
    rank: Rank = 128,
    results_dir: ResultsDir = Path("results"),
    image_idx: Annotated[int, typer.Option(help="Which test picture, from 0.")] = 0,
    channels: Annotated[int, typer.Option(help="How many channels, from the first.")] = 8,
    output_dir: Annotated[
        Path | None, typer.Option(help="Where the pictures go; <results-dir>/pictures if left out.")
    ] = None,
    track: Track = True,
) -> None:
    """Maps of channels and errors on the picture's plane, and the cosine over the rank."""
    from subspacelab.core.ownership import report_folder
    from subspacelab.lowrank.features import Features
    from subspacelab.lowrank.logging import track_views
    from subspacelab.lowrank.plots import draw_views, view_names
    from subspacelab.lowrank.visualize import visualize as run
    from subspacelab.tracking import open_run

    where = output_dir or results_dir / "pictures"
    # Not the picture: those of several stand side by side.
    job = _job(where, features, results_dir, arch, rank=rank, channels=channels)
    params = {"features": features, "arch": arch, "rank": rank, "results_dir": results_dir, "image_idx": image_idx}
    with open_run("lowrank", f"visualize r{rank}", params=params, enabled=track) as tracker:
        cached = Features(features)
        _require_apart(where, features, results_dir)
        names = view_names(image_idx)
        with report_folder(where, "lowrank visualize", job, (*names, "rank_curve.json")) as folder:
            views = run(cached, results_dir, archs=arch or (), rank=rank, image_idx=image_idx, channels=channels)
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


def _require_apart(where: Path, features: Path, results_dir: Path) -> None:
    """ValueError if a report would go among the features or beside a network's weights."""
    from subspacelab.core.ownership import require_apart
    from subspacelab.lowrank.architectures import ALIASES

    require_apart(where, [features, *(results_dir / arch for arch in ALIASES)])
