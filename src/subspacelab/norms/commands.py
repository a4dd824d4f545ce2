"""`subspacelab norms ...`: the commands of room 4."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Norms of embedding vectors and parameters of norm layers.")


@app.callback()
def room() -> None:
    """Norms of embedding vectors and parameters of norm layers."""


@app.command()
def analyze(
    model: Annotated[
        list[str],
        typer.Option(help="A checkpoint: local folder, org/name@revision on the hub, or demo:<name>. Repeatable."),
    ],
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    output: Annotated[Path, typer.Option(help="The report as JSON; of several models a list, in order.")] = Path(
        "embedding_analysis.json"
    ),
    all_norms: Annotated[
        bool, typer.Option("--all-norms", help="Every norm layer, not only the embedding-related ones.")
    ] = False,
    output_dir: Annotated[
        Path | None, typer.Option(help="Pictures and the comparison's CSV; left out: beside the JSON, by its name.")
    ] = None,
    track: Annotated[bool, typer.Option("--track/--no-track", help="Record the runs in MLflow.")] = True,
) -> None:
    """Families are found, not asked for; only config.json and the tensors concerned are read, from the hub too.

    Qwen2.5, Qwen2.5-VL, ViT, SigLIP, Molmo, MoonViT and Kimi-VL are known; others are analysed by names alone.
    """
    from dataclasses import replace

    from subspacelab.checkpoints import open_reference
    from subspacelab.checkpoints.references import locate_reference
    from subspacelab.files import write_json
    from subspacelab.norms.analyze import analyze as run
    from subspacelab.norms.outcome import draw_pictures, track_analysis, write_comparison
    from subspacelab.norms.report import print_analysis, print_comparison
    from subspacelab.norms.results import Analysis
    from subspacelab.tracking import open_run

    if output.is_dir():
        raise ValueError(f"--output {output}: a folder; give the name of a file")
    for reference in model:
        locate_reference(reference)  # one that means nothing is found before the first is read
    folder = output_dir or output.with_suffix("")
    analyses: list[Analysis] = []
    for reference in model:
        with open_reference(reference) as checkpoint:
            name = unique(checkpoint.source.name, [a.name for a in analyses])
            params = {"model": reference, "revision": checkpoint.source.revision, "device": device}
            params |= {"all_norms": str(all_norms)}
            with open_run("norms", f"analyze {name}", params=params, enabled=track) as tracker:
                analysis = replace(run(checkpoint, device=device, all_norms=all_norms), name=name)
                pictures = draw_pictures(folder / name if len(model) > 1 else folder, analysis)
                track_analysis(analysis, pictures, tracker)
        analyses.append(analysis)
    reports = [analysis.to_json() for analysis in analyses]
    write_json(output, reports[0] if len(reports) == 1 else reports)
    if len(analyses) > 1:
        with open_run("norms", "compare", params={"models": model}, enabled=track) as tracker:
            for path in write_comparison(folder, analyses):
                tracker.log_artifact(path, "comparison")
    for analysis in analyses:
        print_analysis(analysis)
    if len(analyses) > 1:
        print_comparison(analyses)


def unique(name: str, taken: list[str]) -> str:
    """`name`, or `name-2`, `name-3`, ... if it is taken: two checkpoints may lie in folders of one name."""
    names = [name, *(f"{name}-{i}" for i in range(2, len(taken) + 2))]
    return next(n for n in names if n not in taken)
