"""`subspacelab`: every system as a command on any checkpoint, without DVC, tracked or not."""

import importlib
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Annotated, Any, NoReturn

import typer

from subspacelab.doors import run_process
from subspacelab.errors import one_line_errors, printable
from subspacelab.experiments.commands import metrics, runs, sweep

ROOMS = ("rotation", "lowrank", "nullspace", "norms")
# Every flag in both spellings: --output-dir and --output_dir.
BOTH_SPELLINGS = {"token_normalize_func": lambda token: token.replace("_", "-")}

app = typer.Typer(no_args_is_help=True, add_completion=False, context_settings=dict[str, Any](BOTH_SPELLINGS))


@app.callback()
def root(
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the traceback of an error.")] = False,
) -> None:
    """The low-rank structure of model weights, vision features and adapters, every run tracked.

    A checkpoint is a local folder, [bold]org/name\\[@revision][/bold] on the hub, or [bold]demo:<name>[/bold]
    from the pipeline. Runs are recorded in MLflow (see [bold]subspacelab ui[/bold]); --no-track or TRACKING=off
    leaves that out.
    """


@app.command()
def ui(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 5000,
) -> None:
    """The MLflow UI over this project's runs: pick an experiment, select runs, Compare."""
    from subspacelab.tracking import ui_command

    command, environment = ui_command(host, port)
    typer.echo(f"MLflow UI on http://{host}:{port} (Ctrl-C stops it)", err=True)
    os.execvpe(command[0], command, environment)


app.command()(sweep)
app.add_typer(runs, name="runs")
app.add_typer(metrics, name="metrics")
for _room in ROOMS:
    if find_spec(f"subspacelab.{_room}") and find_spec(f"subspacelab.{_room}.commands"):
        app.add_typer(importlib.import_module(f"subspacelab.{_room}.commands").app, name=_room)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; exit code 0, 1 for bad input, 2 for wrong usage, 70 for the unforeseen: one line each."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    verbose = "--verbose" in given
    # --verbose may stand anywhere.
    given = ["--verbose"] * verbose + [a for a in given if a != "--verbose"]
    usage_error: type[Exception] = typer.BadParameter.__mro__[1]
    with one_line_errors(verbose):
        try:
            code = app(args=given, prog_name="subspacelab", standalone_mode=False)
        except usage_error as e:
            message = e.format_message()  # type: ignore[attr-defined]
            if message:  # without one, help was printed instead
                context = getattr(e, "ctx", None)
                command = context.command_path if context else "subspacelab"
                print(f"error: {printable(message)} Try '{command} --help'.", file=sys.stderr)
            raise SystemExit(2) from e
        if code == 130:  # what typer makes of a Ctrl-C
            raise KeyboardInterrupt
    raise SystemExit(code or 0)


def run() -> NoReturn:
    """`main` as the whole of a process."""
    run_process(main)
