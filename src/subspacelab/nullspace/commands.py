"""`subspacelab nullspace ...`: the commands of nullspace."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from subspacelab.core.flags import Rank, Seed, Track, with_settings
from subspacelab.nullspace.config import BuildSettings, ForgettingSettings, TrainSettings, VerifyAdapterConfig

app = typer.Typer(no_args_is_help=True, help="Adapters in the null space of a model's old inputs.")

COMPARED = ("compare_stats.csv", "before_after.png")
"""What `compare-stats` writes."""

Base = Annotated[str | None, typer.Option(help="The base model, if it has moved since the build.")]


@app.command()
@with_settings(BuildSettings)
def build(
    model_id: Annotated[
        str, typer.Option(help="A causal language model: local folder, org/name@revision on the hub, or pipeline:NAME.")
    ],
    save_path: Annotated[Path, typer.Option(help="Folder of the adapter.")],
    method: Annotated[
        str,
        typer.Option(
            help="lora_null_v2, lora_null_v2_projected, lora_null_v1, frozen_random, lora, lora_decay, pissa, corda,"
            " milora."
        ),
    ] = "lora_null_v2",
    rank: Rank = 128,
    seed: Seed = 233,
    *,
    settings: BuildSettings,
    track: Track = True,
) -> None:
    """Builds an adapter that hardly sees a model's old inputs.

    Its down-projection avoids the directions of the layers' inputs. Writes adapter_config.json,
    adapter_model.safetensors, nullspace.json (a report per layer) and a model card; plain PeftModel.from_pretrained
    loads it.
    """
    from subspacelab.checkpoints import resolve_reference
    from subspacelab.nullspace.building import build_adapter
    from subspacelab.nullspace.display import print_built
    from subspacelab.nullspace.logging import track_built
    from subspacelab.plotting.terminal import progress_bar, say_where
    from subspacelab.tracking import open_run

    source = resolve_reference(model_id)
    params = asdict(settings) | {"model_id": model_id, "revision": source.revision, "method": method}
    params |= {"rank": rank, "seed": seed}
    with open_run(
        "nullspace", f"build {method} r{rank}", params=params, inputs=[source, settings.calib_dataset], enabled=track
    ) as tracker:
        built = build_adapter(
            source, save_path, method=method, rank=rank, seed=seed, settings=settings, progress=progress_bar
        )
        track_built(built, tracker)
    print_built(built)
    say_where(save_path)


@app.command()
@with_settings(TrainSettings)
def train(
    adapter: Annotated[Path, typer.Option(help="An adapter made by `nullspace build`.")],
    output_dir: Annotated[Path, typer.Option(help="Folder of the result; the trained adapter is in <output-dir>/ft.")],
    seed: Seed = 233,
    base: Base = None,
    *,
    settings: TrainSettings,
    track: Track = True,
) -> None:
    """Trains an adapter on questions and responses.

    Its method says which parameters train; the loss is computed on the response only. An interrupted training
    continues from its last checkpoint when the same command is run again; a finished one is left unchanged. Several
    processes, each with the whole model, or with a part of it (--fsdp): accelerate launch --multi_gpu -m
    subspacelab nullspace train ...
    """
    from subspacelab.core.devices import is_main_process
    from subspacelab.data.instructions import read_instructions
    from subspacelab.models.adaptable import Reach
    from subspacelab.models.lora_folder import read_meta
    from subspacelab.nullspace.display import print_training
    from subspacelab.nullspace.logging import record_training
    from subspacelab.nullspace.paths import require_adapter
    from subspacelab.nullspace.training import train_adapter
    from subspacelab.plotting.terminal import progress_bar
    from subspacelab.tracking import open_run

    if is_main_process() and (found := read_meta(require_adapter(adapter)).get("reach")):
        typer.echo(Reach(**found).said())  # before the hours, not after them
    params = asdict(settings) | {"adapter": adapter, "seed": seed, "base": base}
    with open_run(
        "nullspace", f"train {adapter.name}", params=params, inputs=[adapter, settings.data], enabled=track
    ) as tracker:
        result = train_adapter(
            adapter,
            output_dir,
            rows=read_instructions(settings.data),
            settings=settings,
            seed=seed,
            base=base,
            log=tracker.log_metrics,
            progress=progress_bar,
        )
        if is_main_process():
            record_training(result, None, tracker, base=base)
    if is_main_process():
        print_training(result)


@app.command()
@with_settings(VerifyAdapterConfig)
def verify(
    trained_model_path: Annotated[Path, typer.Option(help="A trained adapter (<output-dir>/ft), or an untrained one.")],
    seed: Seed = 233,
    save_stats: Annotated[Path | None, typer.Option(help="Write everything as JSON to this file.")] = None,
    base: Base = None,
    *,
    settings: VerifyAdapterConfig,
    track: Track = True,
) -> None:
    """Is B still in the null space, and was anything learned?

    Prints a block per layer, averages, and a verdict per metric with its likely causes.
    """
    from contextlib import ExitStack

    from subspacelab.core.devices import choose_device
    from subspacelab.core.ownership import require_apart, sole_writer
    from subspacelab.nullspace.display import print_verification
    from subspacelab.nullspace.logging import track_verification
    from subspacelab.nullspace.results import require_own_stats, write_stats
    from subspacelab.nullspace.verification import inputs_of, sample_of
    from subspacelab.nullspace.verification import verify_adapter as run
    from subspacelab.plotting.terminal import progress_bar
    from subspacelab.tracking import open_run

    params = asdict(settings) | {"trained_model_path": trained_model_path, "seed": seed, "base": base}
    with ExitStack() as stack:
        if save_stats is not None:
            require_apart(save_stats, inputs_of(trained_model_path, settings.calib_dataset, base))
            stack.enter_context(sole_writer(save_stats))
            require_own_stats(save_stats, trained_model_path, settings.calib_dataset, sample_of(settings, seed))
        name = f"verify {trained_model_path.name}"
        tracker = stack.enter_context(
            open_run(
                "nullspace", name, params=params, inputs=[trained_model_path, settings.calib_dataset], enabled=track
            )
        )
        device = choose_device(settings.device)
        found = run(trained_model_path, settings, seed=seed, device=device, base=base, progress=progress_bar)
        track_verification(found, "trained" if found.summary.trained else "init", tracker)
        if save_stats is not None:
            write_stats(save_stats, found)
            tracker.log_artifact(save_stats)
    print_verification(found)


@app.command()
def compare_stats(
    init_stats: Annotated[Path, typer.Option(help="Statistics of the adapter before training.")],
    trained_stats: Annotated[Path, typer.Option(help="Statistics of the adapter after training.")],
    output_dir: Annotated[Path | None, typer.Option(help="Write compare_stats.csv and before_after.png here.")] = None,
    track: Track = True,
) -> None:
    """Compares an adapter before and after training.

    Exit code 3 if a promise of the method is not kept. Both files come from `nullspace verify --save-stats`.
    """
    from contextlib import AbstractContextManager, nullcontext

    from subspacelab.core.files import seen_from, write_csv
    from subspacelab.core.ownership import report_folder
    from subspacelab.nullspace.comparison import compare_stats as run
    from subspacelab.nullspace.comparison import failures
    from subspacelab.nullspace.display import print_comparison
    from subspacelab.nullspace.logging import track_comparison
    from subspacelab.nullspace.plots import draw_before_after
    from subspacelab.nullspace.results import read_stats
    from subspacelab.tracking import open_run

    init, trained = read_stats(init_stats), read_stats(trained_stats)
    params = {"init_stats": init_stats, "trained_stats": trained_stats}
    report: AbstractContextManager[Path | None] = nullcontext()
    if output_dir:
        job = {name: seen_from(output_dir, place) for name, place in params.items()}
        report = report_folder(output_dir, "nullspace compare-stats", job, COMPARED)
    table, name = run(init, trained), f"compare {init.summary.method}"
    with (
        report as folder,
        open_run("nullspace", name, params=params, inputs=[init_stats, trained_stats], enabled=track) as tracker,
    ):
        pictures = []
        if folder:
            write_csv(folder / COMPARED[0], table)
            pictures.append(folder / COMPARED[1])
            draw_before_after(folder / COMPARED[1], [(init, trained)])
        track_comparison(table, pictures, tracker)
    print_comparison(table)
    if len(failures(table)):
        raise typer.Exit(3)


@app.command()
@with_settings(ForgettingSettings)
def forgetting(
    model_id: Annotated[
        str, typer.Option(help="A causal language model: local folder, org/name@revision on the hub, or pipeline:NAME.")
    ],
    output_dir: Annotated[Path, typer.Option(help="Folder of the study: its tables, its picture, its trainings.")],
    *,
    settings: ForgettingSettings,
    track: Track = True,
) -> None:
    """What fine-tuning makes a model forget, by method.

    Curves over what it has learned. Writes knowledge.csv, curves.csv, costs.csv, results.json and pareto.png after
    every training. A study that was cut short goes on by the same command; more methods or seeds may be added to
    it.
    """
    from subspacelab.checkpoints import resolve_reference
    from subspacelab.nullspace.forgetting.display import print_forgetting
    from subspacelab.nullspace.forgetting.logging import track_forgetting
    from subspacelab.nullspace.forgetting.plots import draw_pareto
    from subspacelab.nullspace.forgetting.results import Forgetting
    from subspacelab.nullspace.forgetting.study import PICTURE, run_study
    from subspacelab.plotting.terminal import progress_bar, say_where
    from subspacelab.tracking import open_run

    source = resolve_reference(model_id)
    picture = output_dir / PICTURE

    def save(found: Forgetting) -> None:
        found.save(output_dir)
        draw_pareto(picture, found)

    params = asdict(settings) | {"model_id": model_id, "revision": source.revision}
    with open_run("nullspace", f"forgetting {source.name}", params=params, enabled=track) as tracker:
        log = tracker.log_metrics
        found = run_study(source, output_dir, settings=settings, after=save, log=log, progress=progress_bar)
        track_forgetting(found, [picture], tracker)
    print_forgetting(found)
    say_where(output_dir)
