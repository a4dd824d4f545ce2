"""Every command of `subspacelab`: those of the studies, of experiments, and the UI."""

import importlib
import os
from importlib.util import find_spec
from typing import Annotated, Any

import typer

from subspacelab.pipeline.commands import metrics, runs, sweep, tune
from subspacelab.report.commands import report

STUDIES = ("rotation", "lowrank", "nullspace", "norms")
# Every flag in both spellings: --output-dir and --output_dir.
BOTH_SPELLINGS = {"token_normalize_func": lambda token: token.replace("_", "-")}

app = typer.Typer(no_args_is_help=True, add_completion=False, context_settings=dict[str, Any](BOTH_SPELLINGS))


@app.callback()
def root(
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the traceback of an error.")] = False,
) -> None:
    """The low-rank structure of model weights, vision features and adapters, every run tracked.

    A checkpoint is a local folder, [bold]org/name\\[@revision][/bold] on the hub, or [bold]pipeline:NAME[/bold]
    from the pipeline. Runs are recorded in MLflow (see [bold]subspacelab ui[/bold]); --no-track or TRACKING=off
    turns this off.
    """


@app.command()
def ui(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 5000,
) -> None:
    """The MLflow UI over this project's runs: pick an experiment, select runs, Compare."""
    from subspacelab.tracking import ui_command

    command, environment, page = ui_command(host, port)
    typer.echo(f"MLflow UI on {page} (Ctrl-C stops it)", err=True)
    os.execvpe(command[0], command, environment)


app.command()(sweep)
app.command()(tune)
app.command()(report)
app.add_typer(runs, name="runs")
app.add_typer(metrics, name="metrics")
for _study in STUDIES:
    if find_spec(f"subspacelab.{_study}") and find_spec(f"subspacelab.{_study}.commands"):
        app.add_typer(importlib.import_module(f"subspacelab.{_study}.commands").app, name=_study)
