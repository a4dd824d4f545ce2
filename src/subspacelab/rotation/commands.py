"""`subspacelab rotation ...`: the commands of room 1."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="How training turns the singular directions of the weights.")

Track = Annotated[bool, typer.Option("--track/--no-track", help="Record the run in MLflow.")]


@app.command()
def decompose(
    model_id: Annotated[
        str, typer.Option(help="A checkpoint: local folder, org/name@revision on the hub, or demo:<name>.")
    ],
    output_dir: Annotated[Path, typer.Option(help="The factors go to <output-dir>/<basename of the model>.")] = Path(
        "data/svd"
    ),
    rank: Annotated[int | None, typer.Option(min=1, help="Leading singular triples to keep; all by default.")] = None,
    include: Annotated[str | None, typer.Option(help="Only weights whose name this regular expression finds.")] = None,
    exclude: Annotated[str | None, typer.Option(help="Not the weights whose name this finds.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    method: Annotated[str, typer.Option(help="auto, gram (float64 Gram matrix, fast) or lapack.")] = "auto",
    track: Track = True,
) -> None:
    """SVD of every weight matrix of a checkpoint, one at a time; no model is ever built.

    An interrupted run continues where it stopped; a further selection of the same checkpoint's weights is added. A
    folder with factors of another checkpoint, rank or method is refused. Several processes:
    accelerate launch -m subspacelab rotation decompose ...
    """
    from subspacelab.checkpoints import resolve_reference
    from subspacelab.distributed import is_main_process
    from subspacelab.rotation.decompose import decompose as run
    from subspacelab.rotation.report import print_decomposition
    from subspacelab.tracking import open_run

    source = resolve_reference(model_id)
    params = {"model_id": model_id, "revision": source.revision, "rank": rank, "method": method, "device": device}
    params |= {"include": include, "exclude": exclude}
    with open_run("rotation", f"decompose {source.name}", params=params, enabled=track) as tracker:
        result = run(
            source,
            output_dir,
            rank=rank,
            include=include,
            exclude=exclude,
            device=device,
            method=method,
            log=tracker.log_metrics,
        )
        tracker.log_headline(result.metrics)
    if is_main_process():
        print_decomposition(result)


@app.command()
def compare(
    base: Annotated[Path, typer.Option(help="Decomposed folder of the base checkpoint.")],
    stage1: Annotated[Path, typer.Option(help="Decomposed folder of the checkpoint trained from the base.")],
    stage2: Annotated[Path, typer.Option(help="Decomposed folder of the checkpoint trained from stage 1.")],
    output_dir: Annotated[Path, typer.Option(help="Where tables and pictures go.")],
    rank: Annotated[
        int | None, typer.Option(min=1, help="Leading directions k of the principal angles; min(rank, 64) by default.")
    ] = None,
    module: Annotated[
        list[str] | None,
        typer.Option(help="NAME=PATTERN[,PATTERN...]: a further group; {} is any layer, {0-11} a range. Repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the random controls.")] = 42,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    track: Track = True,
) -> None:
    """Do the rotations compose? R(base, stage2) against R(base, stage1) R(stage1, stage2), with controls.

    Writes layers.csv, modules.csv, curves.csv, metrics.json and four pictures.
    """
    from subspacelab.rotation.compare import compare as run
    from subspacelab.rotation.report import print_comparison, track_comparison
    from subspacelab.tracking import open_run

    modules = parse_modules(module or [])
    params = {"base": base, "stage1": stage1, "stage2": stage2, "rank": rank, "modules": modules, "seed": seed}
    with open_run("rotation", "compare", params=params, enabled=track) as tracker:
        result = run(
            base,
            stage1,
            stage2,
            output_dir,
            k=rank,
            modules=modules,
            seed=seed,
            device=device,
            log_curve=tracker.log_metrics,
        )
        track_comparison(result, tracker)
    print_comparison(result)


def parse_modules(given: list[str]) -> dict[str, str]:
    """`["vision block 0=visual.blocks.0.attn.qkv"]` as a mapping; without a name or a pattern a ValueError."""
    parsed = {}
    for entry in given:
        name, _, patterns = entry.partition("=")
        if not name or not patterns:
            raise ValueError(
                f"--module {entry!r}: expected NAME=PATTERN, such as 'qkv=visual.blocks.{{}}.attn.qkv.weight'"
            )
        parsed[name] = patterns
    return parsed
