"""`subspacelab rotation ...`: the commands of rotation."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="How training turns the singular directions of the weights.")

Track = Annotated[bool, typer.Option("--track/--no-track", help="Record the run in MLflow.")]


@app.command()
def decompose(
    model_id: Annotated[
        str, typer.Option(help="A checkpoint: local folder, org/name@revision on the hub, or pipeline:NAME.")
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
    from subspacelab.core.distributed import is_main_process
    from subspacelab.rotation.decompose import decompose as run
    from subspacelab.rotation.display import print_decomposition
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
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of the random controls.")] = 42,
    null: Annotated[
        int,
        typer.Option(
            min=0,
            help="Random updates of equal norm drawn per weight and pair, the null model; 0: none. Each costs three "
            "decompositions. From 3, |z| > 3 comes by chance in 12 % of the columns and |z| > 5 in 4.9 %; from 10 in "
            "1.9 % and 0.1 %; from 20 in 0.9 % and 0.01 %; of angles and composition errors, which are skewed, |z| > 5 "
            "in 1 to 2 % even from 10.",
        ),
    ] = 3,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    track: Track = True,
) -> None:
    """How did training turn the weights, and would a random update of equal norm do the same?

    Principal angles, spectra and updates of base, stage 1 and stage 2, and
    whether the rotations compose: R1 R2 - R3 = -U_0^T (I - U_1 U_1^T) U_2,
    which sees only how far the tall side's column space tilts.

    Beside each measure x stand x_null_mean, x_null_std and x_z, those of random
    updates. A measure stands out where |z| > 5 and its ratio to the random mean
    lies outside 0.8 to 1.25 (a cosine: beyond 0.1). floor_* is the effect of
    half an ulp of bf16 noise, no limit of what can be seen.

    Writes layers.csv, modules.csv, curves.csv, metrics.json and four pictures.
    """
    from subspacelab.core.ownership import report_folder, require_apart
    from subspacelab.rotation.chain import open_chain
    from subspacelab.rotation.compare import TABLES
    from subspacelab.rotation.compare import compare as run
    from subspacelab.rotation.display import print_comparison
    from subspacelab.rotation.groups import make_groups
    from subspacelab.rotation.logging import track_comparison
    from subspacelab.rotation.plots import PICTURES, draw_pictures
    from subspacelab.tracking import open_run

    modules = parse_modules(module or [])
    settings = {"rank": rank, "modules": modules, "seed": seed, "null": null}
    require_apart(output_dir, [base, stage1, stage2])
    chain = open_chain(base, stage1, stage2)
    make_groups(chain.names, modules)  # that each pattern means something
    job = settings | chain.places(output_dir)
    params = {"base": base, "stage1": stage1, "stage2": stage2, **settings}
    with (
        report_folder(output_dir, "rotation compare", job, (*TABLES, *PICTURES)) as folder,
        open_run("rotation", "compare", params=params, enabled=track) as tracker,
    ):
        result = run(chain, k=rank, modules=modules, seed=seed, null_draws=null, device=device)
        result.save(folder)
        track_comparison(result, folder, draw_pictures(folder, result), tracker)
    print_comparison(result)


def parse_modules(given: list[str]) -> dict[str, str]:
    """`["vision block 0=visual.blocks.0.attn.qkv"]` as a mapping; without a name or a pattern a ValueError."""
    parsed: dict[str, str] = {}
    for entry in given:
        name, _, patterns = entry.partition("=")
        if not name or not patterns:
            raise ValueError(
                f"--module {entry!r}: expected NAME=PATTERN, such as 'qkv=visual.blocks.{{}}.attn.qkv.weight'"
            )
        if name in parsed:
            raise ValueError(f"--module {entry!r}: {name!r} is given twice; join its patterns by commas, or rename one")
        parsed[name] = patterns
    return parsed
