"""`subspacelab norms ...`: the commands of norms."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from subspacelab.core.flags import Track, with_settings
from subspacelab.norms.config import AnalyzeSettings, MassiveSettings

if TYPE_CHECKING:
    from subspacelab.checkpoints import Source

app = typer.Typer(no_args_is_help=True, help="Norms of embedding vectors, norm layers, massive activations.")


@app.callback()
def norms() -> None:
    """Norms of embedding vectors, parameters of norm layers, massive activations."""


@app.command()
@with_settings(AnalyzeSettings)
def analyze(
    model: Annotated[
        list[str],
        typer.Option(help="A checkpoint: local folder, org/name@revision on the hub, or pipeline:NAME. Repeatable."),
    ],
    output: Annotated[
        Path, typer.Option(help="File of the report (JSON); for several models a list, in order.")
    ] = Path("embedding_analysis.json"),
    output_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder of pictures and of the comparison's CSV; default: beside the JSON file, with its name."
        ),
    ] = None,
    *,
    settings: AnalyzeSettings,
    track: Track = True,
) -> None:
    """Norms of embeddings and parameters of norm layers.

    Only config.json and these tensors are read, also from the hub. The model family is detected. 48 families are
    known (docs/your-models.md lists them); others are analysed by tensor names alone, with a warning.
    """
    from contextlib import ExitStack
    from dataclasses import asdict, replace

    from subspacelab.checkpoints import open_reference
    from subspacelab.checkpoints.references import locate_reference
    from subspacelab.core.devices import choose_device
    from subspacelab.core.files import write_json
    from subspacelab.core.ownership import require_apart
    from subspacelab.norms.analysis import analyze as run
    from subspacelab.norms.display import print_analysis, print_comparison
    from subspacelab.norms.logging import track_analysis, write_comparison
    from subspacelab.norms.plots import COMPARISON, PICTURES, draw_pictures
    from subspacelab.plotting.terminal import progress_bar, say_where
    from subspacelab.tracking import open_run

    require_file(output, output_dir)
    chosen = asdict(settings)
    choose_device(settings.device)
    for reference in model:
        locate_reference(reference)  # one that means nothing is found before the first is read
    folder = output_dir or output.with_suffix("")
    with ExitStack() as stack:
        opened = [stack.enter_context(open_reference(reference)) for reference in model]
        sources = [checkpoint.source for checkpoint in opened]
        for place in (output, folder):
            require_apart(place, [source.folder for source in sources])
        names, several = unique([source.name for source in sources], COMPARISON), len(model) > 1
        drawn = [f"{name}/{picture}" for name in names for picture in PICTURES] if several else []
        if output_dir is None:
            require_free_or_own(output, folder)
        job = job_of(sources, output.parent, settings)
        places = reserved(output, folder, job, [*drawn, *COMPARISON] if several else PICTURES)
        report, pictures = stack.enter_context(places)
        analyses = []
        for reference, name, checkpoint in zip(model, names, opened, strict=True):
            params = {"model": reference, "revision": checkpoint.source.revision}
            params |= {name: str(value) for name, value in chosen.items()}
            with open_run(
                "norms", f"analyze {name}", params=params, inputs=[checkpoint.source], enabled=track
            ) as tracker:
                analysis = run(checkpoint, **chosen, progress=progress_bar)
                analysis = replace(analysis, name=name)
                paths = draw_pictures(pictures / name if several else pictures, analysis)
                track_analysis(analysis, paths, tracker)
            analyses.append(analysis)
        reports = [analysis.to_json() for analysis in analyses]
        write_json(report, reports if several else reports[0])
        if several:
            with open_run(
                "norms", "compare", params={"models": model}, inputs=[c.source for c in opened], enabled=track
            ) as tracker:
                for path in write_comparison(pictures, analyses):
                    tracker.log_artifact(path, "comparison")
    for analysis in analyses:
        print_analysis(analysis)
    if several:
        print_comparison(analyses)
    say_where(output, folder)


@app.command()
@with_settings(MassiveSettings)
def massive(
    model: Annotated[
        str, typer.Option(help="A causal language model: local folder, org/name@revision on the hub, or pipeline:NAME.")
    ],
    text: Annotated[str, typer.Option(help="wikitext2, c4, ptb, pipeline:corpus, or a file or folder of text.")],
    output_dir: Annotated[Path, typer.Option(help="Folder of the tables and the picture.")],
    *,
    settings: MassiveSettings,
    track: Track = True,
) -> None:
    """Massive activations of the residual stream, by layer.

    Beside them the norm scales of their dimensions. Massive: larger than 100 and than 1000 times the median of its
    window (arXiv 2402.17762). Random dimensions are shown as a control. The model is loaded and reads the text;
    `analyze` loads none.
    """
    from dataclasses import asdict

    from subspacelab.checkpoints import resolve_reference
    from subspacelab.core.files import seen_from
    from subspacelab.core.ownership import report_folder, require_apart
    from subspacelab.norms.activations import massive as run
    from subspacelab.norms.display import print_massive
    from subspacelab.norms.logging import track_massive
    from subspacelab.norms.plots import MASSIVE, draw_massive
    from subspacelab.norms.results import FILES
    from subspacelab.plotting.terminal import progress_bar, say_where
    from subspacelab.tracking import open_run

    source = resolve_reference(model)
    require_apart(output_dir, [source.folder])
    given = source.reference if source.revision else seen_from(output_dir, source.folder)
    job = asdict(settings) | {"model": given, "revision": source.revision, "text": text}
    params = job | {"model": model}
    with (
        report_folder(output_dir, "norms massive", job, [*FILES, MASSIVE]) as folder,
        open_run("norms", f"massive {source.name}", params=params, inputs=[source, text], enabled=track) as tracker,
    ):
        found = run(source, text, **asdict(settings), progress=progress_bar)
        found.save(folder)
        draw_massive(folder / MASSIVE, found)
        track_massive(found, [folder / MASSIVE], tracker)
    print_massive(found)
    say_where(output_dir)


def require_file(output: Path, output_dir: Path | None) -> None:
    """ValueError if `output` is a folder, or if its name gives no other name for the folder of pictures."""
    if output.is_dir():
        raise ValueError(f"--output {output}: a folder; give the name of a file")
    if output_dir is None and not output.suffix:
        raise ValueError(
            f"--output {output}: give it a suffix, {output}.json; the pictures go to a folder of that name"
        )


def job_of(sources: "Sequence[Source]", beside: Path, settings: AnalyzeSettings) -> dict[str, Any]:
    """Models and settings that determine a report; local models by their relative path from `beside`."""
    from subspacelab.core.files import seen_from

    job: dict[str, Any] = {
        "models": [s.reference if s.revision else seen_from(beside, s.folder) for s in sources],
        "revisions": [s.revision for s in sources],
        "device": settings.device,
        "all_norms": settings.all_norms,
    }
    return job | {name: False for name in ("embeddings", "curves") if not getattr(settings, name)}


def require_free_or_own(output: Path, folder: Path) -> None:
    """ValueError if the default `folder` exists, unless it holds the pictures of `output`."""
    from subspacelab.core.ownership import written_names

    own = written_names(output.parent, f"norms analyze {output.name}")
    if folder.is_dir() and any(folder.iterdir()) and not any(name.startswith(f"{folder.name}/") for name in own):
        raise ValueError(
            f"{folder}: exists, and was not made by this command; give a folder for the pictures of {output} by "
            "--output-dir"
        )


@contextmanager
def reserved(output: Path, folder: Path, job: dict[str, Any], drawn: Sequence[str]) -> Iterator[tuple[Path, Path]]:
    """Yields temporary paths for the report and its pictures; they appear as `output` and in `folder` on success.

    ValueError, before any work, if the report or one of the pictures `drawn` would replace something else.
    """
    from subspacelab.core.files import real_path
    from subspacelab.core.ownership import report_folder

    command = f"norms analyze {output.name}"
    here, there = real_path(output.parent), real_path(folder)
    if there.is_relative_to(here):
        below = there.relative_to(here)
        names = [output.name, *(str(below / name) for name in drawn)]
        with report_folder(output.parent, command, job, names) as report:
            yield report / output.name, report / below
    else:
        with (
            report_folder(output.parent, command, job, [output.name]) as report,
            report_folder(folder, command, job, drawn) as pictures,
        ):
            yield report / output.name, pictures


def unique(names: Sequence[str], taken: Sequence[str]) -> list[str]:
    """The names with `-2`, `-3`, ... behind repeated or `taken` ones: two checkpoints may be in folders of one
    name.
    """
    found: list[str] = []
    for name in names:
        choices = [name, *(f"{name}-{i}" for i in range(2, len(names) + len(taken) + 2))]
        found.append(next(choice for choice in choices if choice not in (*found, *taken)))
    return found
