"""`subspacelab nullspace ...`: the commands of room 3."""

from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(no_args_is_help=True, help="Adapters in the null space of what a model knows: build, train, verify.")

Track = Annotated[bool, typer.Option("--track/--no-track", help="Record the run in MLflow.")]


@app.command()
def build(
    model_id: Annotated[
        str, typer.Option(help="A causal language model: local folder, org/name@revision on the hub, or demo:<name>.")
    ],
    save_path: Annotated[Path, typer.Option(help="Folder of the adapter.")],
    method: Annotated[
        str,
        typer.Option(
            help="lora_null_v2, lora_null_v2_projected, lora_null_v1, lora, lora_decay, pissa, corda or milora."
        ),
    ] = "lora_null_v2",
    rank: Annotated[int, typer.Option(min=1, help="Rank of every adapter.")] = 128,
    calib_dataset: Annotated[
        str | None,
        typer.Option(
            help="wikitext2, c4, ptb, FILE.txt, demo:corpus; wikitext2 by default, none for methods that need none."
        ),
    ] = None,
    calib_loader_size: Annotated[int, typer.Option(help="Windows of text; an eighth is held out.")] = 256,
    seq_len: Annotated[int, typer.Option(help="Tokens in a window.")] = 2048,
    seed: Annotated[int, typer.Option(help="Of the windows and of random starts.")] = 233,
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
    from dataclasses import asdict

    from subspacelab.checkpoints import resolve_reference
    from subspacelab.nullspace.build import build_adapter
    from subspacelab.nullspace.build_report import print_built, track_built
    from subspacelab.nullspace.config import BuildSettings
    from subspacelab.nullspace.methods import method_of
    from subspacelab.params import validate
    from subspacelab.tracking import open_run

    text = calib_dataset or ("wikitext2" if method_of(method).needs_calibration else None)
    values: dict[str, Any] = {
        "calib_dataset": text,
        "calib_loader_size": calib_loader_size,
        "seq_len": seq_len,
        "device": device,
    }
    values |= {"batch_size": batch_size, "targets": targets or None, "allow_few_tokens": allow_few_tokens}
    settings = validate(BuildSettings, values, where="build")
    source = resolve_reference(model_id)
    params = asdict(settings) | {"model_id": model_id, "revision": source.revision, "method": method}
    params |= {"rank": rank, "seed": seed}
    with open_run("nullspace", f"build {method} r{rank}", params=params, enabled=track) as tracker:
        built = build_adapter(source, save_path, method=method, rank=rank, seed=seed, settings=settings)
        track_built(built, tracker)
    print_built(built)
