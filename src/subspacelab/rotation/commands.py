"""`subspacelab rotation ...`: the commands of rotation."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from subspacelab.core.errors import SettingError
from subspacelab.core.flags import Seed, Track, with_settings
from subspacelab.rotation.config import (
    ApplyConfig,
    AuditConfig,
    CompareRotationsConfig,
    DecomposeConfig,
    ExtractConfig,
)

app = typer.Typer(no_args_is_help=True, help="How training turns the singular directions of the weights.")


@app.command()
@with_settings(DecomposeConfig)
def decompose(
    model_id: Annotated[
        list[str],
        typer.Option(
            help="A checkpoint: local folder, org/name@revision on the hub, or pipeline:NAME. Repeat it for several."
        ),
    ],
    output_dir: Annotated[
        Path, typer.Option(help="Folder of the factors, in <output-dir>/<basename of the model>.")
    ] = Path("data/svd"),
    *,
    settings: DecomposeConfig,
    track: Track = True,
) -> None:
    """The SVD of every weight matrix of checkpoints.

    Weights are read one at a time; no model is built. An interrupted run continues; further weights of the same
    checkpoint are added. ValueError for a folder with factors of another checkpoint, or made with other settings.
    Several processes: accelerate launch -m subspacelab rotation decompose ...
    """
    from subspacelab.checkpoints import resolve_reference
    from subspacelab.core.devices import is_main_process
    from subspacelab.plotting.terminal import progress_bar, say_where
    from subspacelab.rotation.decomposition import decompose_into as run
    from subspacelab.rotation.display import print_decomposition
    from subspacelab.tracking import open_run

    sources = [resolve_reference(reference) for reference in model_id]
    names = [source.name for source in sources]
    if len(set(names)) < len(names):
        raise SettingError(f"decompose: two models of one name ({', '.join(names)}); give each its own --output-dir")
    for reference, source in zip(model_id, sources, strict=True):
        params = {"model_id": reference, "revision": source.revision} | asdict(settings)
        with open_run("rotation", f"decompose {source.name}", params=params, inputs=[source], enabled=track) as tracker:
            result = run(source, output_dir, **asdict(settings), log=tracker.log_metrics, progress=progress_bar)
            tracker.log_headline(result.metrics)
        if is_main_process():
            print_decomposition(result)
            say_where(result.folder)


@app.command()
@with_settings(CompareRotationsConfig)
def compare(
    checkpoints: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="A B [C ...]",
            help="Two or more checkpoints in order of training: local folder, org/name@revision, pipeline:NAME, or a "
            "decomposed folder.",
        ),
    ] = None,
    output_dir: Annotated[Path, typer.Option(help="Folder of tables and pictures.")] = ...,  # type: ignore[assignment]
    base: Annotated[Path | None, typer.Option(help="Decomposed folder of the base checkpoint.")] = None,
    stage1: Annotated[
        Path | None, typer.Option(help="Decomposed folder of the checkpoint trained from the base.")
    ] = None,
    stage2: Annotated[
        Path | None, typer.Option(help="Decomposed folder of the checkpoint trained from stage 1.")
    ] = None,
    module: Annotated[
        list[str] | None,
        typer.Option(help="NAME=PATTERN[,PATTERN...]: a further group; {} is any layer, {0-11} a range. Repeatable."),
    ] = None,
    seed: Seed = 42,
    *,
    settings: CompareRotationsConfig,
    track: Track = True,
) -> None:
    """How training rotated the weights, beside random updates.

    Measures principal angles, spectra and updates from each checkpoint to the
    next. A B [C ...] are read weight by weight, and nothing is left on disk;
    --base, --stage1, --stage2 are three decomposed folders. For three
    checkpoints it also tests whether the rotations compose:
    R1 R2 - R3 = -U_0^T (I - U_1 U_1^T) U_2, which depends only on the tilt of
    the tall side's column space.

    Each measure x has columns for random updates: x_null_mean, x_null_std and
    x_z. A measure stands out if |z| > 5 and its ratio to the random mean is
    outside 0.8 to 1.25 (for a cosine: beyond 0.1). floor_* is the effect of
    half an ulp of bf16 noise, not a limit of detection.

    Writes layers.csv, modules.csv, curves.csv, metrics.json and pictures; for
    A B [C ...] also links.csv (a row per weight and link) and the spectra.
    An interrupted comparison continues: its rows are kept in
    OUTPUT_DIR/unfinished. Several processes share the weights:
    accelerate launch -m subspacelab rotation compare ...
    """
    from contextlib import ExitStack, suppress

    from subspacelab.core.callbacks import no_progress
    from subspacelab.core.devices import choose_device, processes
    from subspacelab.core.ownership import MANIFEST, report_folder, require_apart, sole_writer
    from subspacelab.plotting.terminal import progress_bar, say_where
    from subspacelab.rotation.chain import open_chain
    from subspacelab.rotation.comparison import LINKS, SPECTRA, TABLES, compare_chain
    from subspacelab.rotation.display import print_comparison
    from subspacelab.rotation.factors import read_decomposition
    from subspacelab.rotation.groups import make_groups
    from subspacelab.rotation.logging import track_comparison
    from subspacelab.rotation.measuring import Settings
    from subspacelab.rotation.plots import draw_pictures, pictures_of
    from subspacelab.rotation.unfinished import UNFINISHED, KeptRows
    from subspacelab.tracking import open_run

    modules = parse_modules(module or [])
    folders = three_folders(checkpoints, base, stage1, stage2)
    require_apart(output_dir, folders)
    places = [read_decomposition(folder) for folder in folders] or (checkpoints or [])
    chain = open_chain(*places, include=settings.include, exclude=settings.exclude)
    require_apart(output_dir, [c.folder for c in chain.checkpoints if c.folder is not None])
    make_groups(chain.names, modules)  # fails early for a pattern that matches nothing
    how = Settings(settings.k, seed, settings.null_draws, settings.device, tuple(settings.null_models or ()))
    group = processes(cpu=choose_device(settings.device).type == "cpu")
    made_by: dict[str, Any] = {"rank": settings.k, "modules": modules, "seed": seed, "null": settings.null_draws}
    given = {name: getattr(settings, name) for name in ("include", "exclude", "null_models")}
    made_by |= {name: value for name, value in given.items() if value is not None}
    inputs = {"base": base, "stage1": stage1, "stage2": stage2, "checkpoints": checkpoints}
    inputs = {name: value for name, value in inputs.items() if value is not None}
    pictures = pictures_of(len(chain.checkpoints))
    files = (*TABLES, *pictures) if folders else (*TABLES, *pictures, LINKS, SPECTRA)
    kept = KeptRows(output_dir / UNFINISHED, how.for_chain(chain).job | {"checkpoints": chain.labels})
    with ExitStack() as stack:
        folder = None
        if group.is_main:
            job = made_by | chain.places(output_dir)
            folder = stack.enter_context(report_folder(output_dir, "rotation compare", job, files))
            kept.read()  # what is there is ours
            kept.clean()
        group.wait()  # nobody writes before that is known
        tracker = stack.enter_context(
            open_run("rotation", "compare", params=inputs | made_by, inputs=folders or checkpoints or [], enabled=track)
        )
        progress = progress_bar if group.is_main else no_progress
        result = compare_chain(chain, how, modules=modules, progress=progress, kept=kept, group=group)
        if folder is not None:
            result.save(folder, details=False)
            if not folders:
                result.save_links(folder)
            track_comparison(result, folder, draw_pictures(folder, result), tracker)
    if group.is_main:
        with suppress(ValueError), sole_writer(output_dir / MANIFEST):  # of another comparison by now, or not ours
            kept.remove()
        print_comparison(result)
        say_where(output_dir)


@app.command()
@with_settings(AuditConfig)
def audit(
    adapters: Annotated[
        list[str], typer.Argument(metavar="ADAPTER ...", help="PEFT LoRA adapters: local folder or org/name@revision.")
    ],
    base: Annotated[
        str | None, typer.Option(help="The base checkpoint, in place of the one that the adapter names.")
    ] = None,
    output_dir: Annotated[
        Path | None, typer.Option(help="Folder of tables and pictures; for several adapters, a subfolder each.")
    ] = None,
    seed: Seed = 42,
    *,
    settings: AuditConfig,
    track: Track = True,
) -> None:
    """The update of a LoRA adapter: its size and its directions.

    Per weight: exact spectrum of the update, relative norm, stable and effective
    rank, energy in the base's leading and trailing directions, rotation of the
    leading directions, intruder dimensions; all compared with random updates
    with the same singular values. The base is read weight by weight. With
    --calib-dataset it is also run, to measure the update's outputs on real
    inputs.
    """
    from contextlib import ExitStack

    from subspacelab.core.ownership import report_folder, require_apart
    from subspacelab.plotting.terminal import progress_bar, say_where
    from subspacelab.rotation.audit_plots import PICTURES, draw_audit_pictures
    from subspacelab.rotation.auditing import FILES
    from subspacelab.rotation.auditing import audit as run
    from subspacelab.rotation.display import print_audit
    from subspacelab.rotation.logging import track_audit
    from subspacelab.tracking import open_run

    names = [Path(adapter).name for adapter in adapters]
    if output_dir is not None and len(set(names)) < len(names):
        raise SettingError(f"audit: two adapters of one name ({', '.join(names)}); give each its own --output-dir")
    if output_dir is not None:
        require_apart(output_dir, [Path(place) for place in (*adapters, base or "") if place and Path(place).exists()])
    for name, adapter in zip(names, adapters, strict=True):
        params = {"adapter": adapter, "base": base, "seed": seed} | asdict(settings)
        with ExitStack() as stack:
            job = {"adapter": name, "base": base and Path(base).name, "seed": seed, "k": settings.k}
            if settings.calib_dataset is not None:
                job["calibration"] = f"{settings.calib_dataset} {settings.calib_loader_size} {settings.seq_len}"
            place = output_dir if output_dir is None or len(adapters) == 1 else output_dir / name
            files = (*FILES, *PICTURES.values())
            folder = place and stack.enter_context(
                report_folder(place, "rotation audit", job | {"null": settings.null_draws}, files)
            )
            tracker = stack.enter_context(
                open_run(
                    "rotation",
                    f"audit {name}",
                    params=params,
                    inputs=[adapter, base, settings.calib_dataset],
                    enabled=track,
                )
            )
            result = run(adapter, base, seed=seed, **asdict(settings), progress=progress_bar)
            pictures: tuple[Path, ...] = ()
            if folder is not None:
                result.save(folder)
                pictures = draw_audit_pictures(folder, result)
            track_audit(result, pictures, tracker)
        print_audit(result)
        if place is not None:
            say_where(place)


Base = Annotated[str, typer.Argument(metavar="BASE", help="The checkpoint before training.")]
Tuned = Annotated[str, typer.Argument(metavar="TUNED", help="The checkpoint after training, trained from the base.")]


@app.command()
@with_settings(ExtractConfig)
def extract(
    base: Base,
    tuned: Tuned,
    output_dir: Annotated[Path, typer.Option(help="A new folder for the adapter.")],
    *,
    settings: ExtractConfig,
) -> None:
    """Writes a training's update as a PEFT LoRA adapter.

    Only of the linear layers. Per weight, the best approximation of tuned - base of one --rank, or of the
    smallest rank that keeps the share --energy of its squared norm. Embeddings,
    tied heads, norms, biases and convolutions are left out, and listed with
    their share of the update. The weights are read one at a time.
    """
    from subspacelab.core.ownership import require_apart
    from subspacelab.plotting.terminal import progress_bar
    from subspacelab.rotation.display import print_extraction
    from subspacelab.rotation.extraction import extract as run

    require_apart(output_dir, [Path(place) for place in (base, tuned) if Path(place).exists()])
    print_extraction(run(base, tuned, output_dir, **asdict(settings), progress=progress_bar))


@app.command()
@with_settings(ApplyConfig)
def apply(
    base: Base,
    tuned: Tuned,
    output_dir: Annotated[Path, typer.Option(help="A new folder for the checkpoint.")],
    *,
    settings: ApplyConfig,
) -> None:
    """Writes the base plus a part of its training update.

    The result is an ordinary Hugging Face folder. Base + S * part, weight by weight. The part is the update's best
    approximation of rank --rank, the rest of the update, only its change of
    directions, or only its change of singular values. --random SEED is the
    control: Gaussian matrices with the same norms. Norms and biases are
    base + S * their whole update. Config, tokenizer and dtypes are those of
    the tuned checkpoint.
    """
    from subspacelab.core.ownership import require_apart
    from subspacelab.plotting.terminal import progress_bar
    from subspacelab.rotation.application import apply as run
    from subspacelab.rotation.display import print_application

    require_apart(output_dir, [Path(place) for place in (base, tuned) if Path(place).exists()])
    print_application(run(base, tuned, output_dir, **asdict(settings), progress=progress_bar))


def three_folders(checkpoints: list[str] | None, *folders: Path | None) -> list[Path]:
    """The folders of --base, --stage1 and --stage2; empty if checkpoints are given. ValueError if both are given."""
    given = [folder for folder in folders if folder is not None]
    if given and (checkpoints or len(given) < len(folders)):
        raise SettingError("compare: give checkpoints A B [C ...], or all of --base, --stage1 and --stage2")
    return given


def parse_modules(given: list[str]) -> dict[str, str]:
    """`["vision block 0=visual.blocks.0.attn.qkv"]` as a mapping; ValueError without a name or a pattern."""
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
