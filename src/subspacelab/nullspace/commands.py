"""`subspacelab nullspace ...`: the commands of nullspace."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from subspacelab.nullspace.config import BuildSettings

app = typer.Typer(no_args_is_help=True, help="Adapters in the null space of what a model knows: build, train, verify.")

COMPARED = ("compare_stats.csv", "before_after.png")
"""What `compare-stats` writes."""

Track = Annotated[bool, typer.Option("--track/--no-track", help="Record the run in MLflow.")]


@app.command()
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
    rank: Annotated[int, typer.Option(min=1, help="Rank of every adapter.")] = 128,
    calib_dataset: Annotated[
        str | None,
        typer.Option(
            help="wikitext2, c4, ptb, FILE.txt, pipeline:corpus; wikitext2 by default, none for methods that need none."
        ),
    ] = None,
    calib_loader_size: Annotated[int, typer.Option(help="Windows of text; an eighth is held out.")] = 256,
    seq_len: Annotated[int, typer.Option(help="Tokens in a window.")] = 2048,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of the windows and of random starts.")] = 233,
    targets: Annotated[
        list[str] | None,
        typer.Option(help="Regular expression that finds layers by name; repeatable; by default all but the head."),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Windows per pass of the model.")] = 8,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    allow_few_tokens: Annotated[
        bool, typer.Option("--allow-few-tokens", help="Build with fewer than 8 tokens per input dimension.")
    ] = False,
    track: Track = True,
) -> None:
    """An adapter whose down-projection avoids what the layers are fed, as an ordinary PEFT folder.

    Writes adapter_config.json, adapter_model.safetensors and nullspace.json (a report per layer); plain
    PeftModel.from_pretrained loads it.
    """
    flags = locals()
    from dataclasses import asdict

    from subspacelab.checkpoints import resolve_reference
    from subspacelab.nullspace.build import build_adapter
    from subspacelab.nullspace.display import print_built
    from subspacelab.nullspace.logging import track_built
    from subspacelab.tracking import open_run

    settings = build_settings(flags)
    source = resolve_reference(model_id)
    params = asdict(settings) | {"model_id": model_id, "revision": source.revision, "method": method}
    params |= {"rank": rank, "seed": seed}
    with open_run("nullspace", f"build {method} r{rank}", params=params, enabled=track) as tracker:
        built = build_adapter(source, save_path, method=method, rank=rank, seed=seed, settings=settings)
        track_built(built, tracker)
    print_built(built)


def build_settings(flags: Mapping[str, Any]) -> "BuildSettings":
    """The settings among the flags of `build`; a method that needs a text and was given none takes wikitext2."""
    from subspacelab.core.settings import settings_from_flags
    from subspacelab.nullspace.config import BuildSettings
    from subspacelab.nullspace.inits import method_of

    text = flags["calib_dataset"] or ("wikitext2" if method_of(flags["method"]).needs_calibration else None)
    given = {**flags, "calib_dataset": text, "targets": flags["targets"] or None}
    return settings_from_flags(BuildSettings, given, where="build")


@app.command()
def train(
    adapter: Annotated[Path, typer.Option(help="An adapter made by `nullspace build`.")],
    data: Annotated[
        str, typer.Option(help="Rows {query, response}: FILE.jsonl, meta-math/MetaMathQA, pipeline:arithmetic.")
    ],
    output_dir: Annotated[Path, typer.Option(help="The trained adapter goes to <output-dir>/ft.")],
    epochs: Annotated[float, typer.Option(help="Passes over the rows.")] = 1.0,
    max_steps: Annotated[int | None, typer.Option(help="Optimizer steps, whatever --epochs says.")] = None,
    lr: Annotated[float, typer.Option(help="AdamW's peak; a cosine brings it to 0.")] = 2e-5,
    batch_size: Annotated[int, typer.Option(help="Rows of one pass, over all processes.")] = 8,
    gradient_accumulation: Annotated[int, typer.Option(help="Passes per optimizer step.")] = 1,
    max_length: Annotated[int, typer.Option(help="Tokens of a row; what is beyond is cut off.")] = 512,
    warmup_ratio: Annotated[float, typer.Option(help="Share of the steps on which the rate rises.")] = 0.03,
    weight_decay: Annotated[
        float | None, typer.Option(help="AdamW's; by default the method's own: 0.3 of lora_decay, else 0.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of the order of the rows.")] = 233,
    save_steps: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 200,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    base: Annotated[str | None, typer.Option(help="The base model, if it is not where it was when building.")] = None,
    track: Track = True,
) -> None:
    """Trains what the adapter's method lets train; the loss is that of the response alone.

    A training that was cut short goes on from its last checkpoint by the same command; a finished one is left as it
    is. Several processes, each with the whole model: accelerate launch --multi_gpu -m subspacelab nullspace train ...
    """
    flags = locals()
    from dataclasses import asdict

    from subspacelab.core.distributed import is_main_process
    from subspacelab.core.settings import settings_from_flags
    from subspacelab.data.instructions import read_instructions
    from subspacelab.models.causal_lm import Reach
    from subspacelab.nullspace.config import TrainSettings
    from subspacelab.nullspace.display import print_training
    from subspacelab.nullspace.logging import record_training
    from subspacelab.nullspace.train import train_adapter
    from subspacelab.tracking import open_run

    settings = settings_from_flags(TrainSettings, flags, where="train")
    params = asdict(settings) | {"adapter": adapter, "seed": seed, "base": base}
    with open_run("nullspace", f"train {adapter.name}", params=params, enabled=track) as tracker:
        result = train_adapter(
            adapter,
            output_dir,
            rows=read_instructions(data),
            settings=settings,
            seed=seed,
            base=base,
            log=tracker.log_metrics,
        )
        if is_main_process():
            record_training(result, None, tracker, base=base)
    if is_main_process():
        print_training(result)
        if "reach" in result.meta:
            typer.echo(Reach(**result.meta["reach"]).said())


@app.command()
def verify(
    trained_model_path: Annotated[Path, typer.Option(help="A trained adapter (<output-dir>/ft), or one just built.")],
    calib_dataset: Annotated[
        str, typer.Option(help="The text: wikitext2, c4, ptb, FILE.txt or pipeline:corpus.")
    ] = "wikitext2",
    calib_loader_size: Annotated[int, typer.Option(help="Windows of it.")] = 16,
    max_activation_samples: Annotated[
        int, typer.Option(help="Tokens per layer that norms are averaged over, drawn evenly from all the windows.")
    ] = 100,
    seq_len: Annotated[int, typer.Option(help="Tokens in a window.")] = 2048,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of windows and tokens.")] = 233,
    batch_size: Annotated[int, typer.Option(help="Windows per pass of the model.")] = 4,
    save_stats: Annotated[Path | None, typer.Option(help="Write everything as JSON to this file.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    base: Annotated[str | None, typer.Option(help="The base model, if it is not where it was when building.")] = None,
    track: Track = True,
) -> None:
    """Is B still in the null space, was anything learned, and how much does the adapter say?

    A block per layer, averages, and a verdict per metric with its likely causes.
    """
    flags = locals()
    from contextlib import ExitStack
    from dataclasses import asdict

    from subspacelab.core.devices import choose_device
    from subspacelab.core.ownership import require_apart, sole_writer
    from subspacelab.core.settings import settings_from_flags
    from subspacelab.nullspace.config import VerifyAdapterConfig
    from subspacelab.nullspace.display import print_verification
    from subspacelab.nullspace.logging import track_verification
    from subspacelab.nullspace.verification import require_own_stats, write_stats
    from subspacelab.nullspace.verify import inputs_of, sample_of
    from subspacelab.nullspace.verify import verify as run
    from subspacelab.tracking import open_run

    settings = settings_from_flags(VerifyAdapterConfig, flags, where="verify")
    params = asdict(settings) | {"trained_model_path": trained_model_path, "seed": seed, "base": base}
    with ExitStack() as stack:
        if save_stats is not None:
            require_apart(save_stats, inputs_of(trained_model_path, calib_dataset, base))
            stack.enter_context(sole_writer(save_stats))
            require_own_stats(save_stats, trained_model_path, calib_dataset, sample_of(settings, seed))
        name = f"verify {trained_model_path.name}"
        tracker = stack.enter_context(open_run("nullspace", name, params=params, enabled=track))
        found = run(trained_model_path, settings, seed=seed, device=choose_device(device), base=base)
        track_verification(found, "trained" if found.summary.trained else "init", tracker)
        if save_stats is not None:
            write_stats(save_stats, found)
            tracker.log_artifact(save_stats)
    print_verification(found)


@app.command()
def compare_stats(
    init_stats: Annotated[Path, typer.Option(help="Statistics of the adapter as it was built.")],
    trained_stats: Annotated[Path, typer.Option(help="Statistics of the trained adapter.")],
    output_dir: Annotated[Path | None, typer.Option(help="Write compare_stats.csv and before_after.png here.")] = None,
    track: Track = True,
) -> None:
    """Before and after training against what a null-space adapter promises; exit code 3 when an expectation fails.

    Both files come from `nullspace verify --save-stats`.
    """
    from contextlib import AbstractContextManager, nullcontext

    from subspacelab.core.files import seen_from, write_csv
    from subspacelab.core.ownership import report_folder
    from subspacelab.nullspace.compare import compare_stats as run
    from subspacelab.nullspace.compare import failures
    from subspacelab.nullspace.display import print_comparison
    from subspacelab.nullspace.logging import track_comparison
    from subspacelab.nullspace.plots import draw_before_after
    from subspacelab.nullspace.verification import read_stats
    from subspacelab.tracking import open_run

    init, trained = read_stats(init_stats), read_stats(trained_stats)
    params = {"init_stats": init_stats, "trained_stats": trained_stats}
    report: AbstractContextManager[Path | None] = nullcontext()
    if output_dir:
        job = {name: seen_from(output_dir, place) for name, place in params.items()}
        report = report_folder(output_dir, "nullspace compare-stats", job, COMPARED)
    table, name = run(init, trained), f"compare {init.summary.method}"
    with report as folder, open_run("nullspace", name, params=params, enabled=track) as tracker:
        pictures = []
        if folder:
            write_csv(folder / COMPARED[0], table)
            pictures.append(draw_before_after(folder / COMPARED[1], [(init, trained)]))
        track_comparison(table, pictures, tracker)
    print_comparison(table)
    if len(failures(table)):
        raise typer.Exit(3)
