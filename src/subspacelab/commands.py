"""Every command of `subspacelab`: those of the studies, of experiments, and the UI."""

import importlib
import os
from importlib.metadata import version
from importlib.util import find_spec
from typing import Annotated, Any

import typer

from subspacelab.pipeline.commands import metrics, runs, sweep, tune
from subspacelab.report.commands import report

STUDIES = ("rotation", "lowrank", "nullspace", "norms")
CONTEXT: dict[str, Any] = {
    "token_normalize_func": lambda token: token.replace("_", "-"),  # --output-dir and --output_dir
    "help_option_names": ["-h", "--help"],
}
"""Of all commands: every flag in both spellings."""

# Help in plain text: in boxes of 80 columns the names of long flags are cut.
app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, context_settings=CONTEXT)


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"subspacelab {version('subspacelab')}")
        raise typer.Exit


@app.callback()
def root(
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """The low-rank structure of model weights, vision features and adapters, every run tracked.

    A checkpoint is a local folder, org/name[@revision] on the hub, or pipeline:NAME from the pipeline. Runs are
    recorded in MLflow (see subspacelab ui); --no-track or TRACKING=off turns this off.
    """


@app.command()
def ui(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 5000,
) -> None:
    """The MLflow UI over this project's runs."""
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
