"""`subspacelab`: every study as a command on any checkpoint, without DVC, tracked or not.

The commands are imported inside the process that `run` guards, since Ctrl-C may come during the import.
"""

import sys
from collections.abc import Sequence

from subspacelab.core.errors import one_line_errors, printable
from subspacelab.pipeline.process import run_process


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line. Exit codes: 0, 1 (bad input), 2 (wrong usage), 70 (unexpected). Errors are one line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    verbose = "--verbose" in given
    # --verbose may stand anywhere.
    given = ["--verbose"] * verbose + [a for a in given if a != "--verbose"]
    with one_line_errors(verbose):
        strange = next((word for word in given if any("\ud800" <= c <= "\udfff" for c in word)), None)
        if strange is not None:
            raise ValueError(f"{strange}: not UTF-8, as file names must be; rename the file or folder")
        import typer

        from subspacelab.commands import app

        usage_error: type[Exception] = typer.BadParameter.__mro__[1]
        try:
            code = app(args=given, prog_name="subspacelab", standalone_mode=False)
        except usage_error as e:
            message = e.format_message()  # type: ignore[attr-defined]
            if message.startswith("Usage: "):  # the help, of a command without arguments
                print(message)
            else:
                context = getattr(e, "ctx", None)
                command = context.command_path if context else "subspacelab"
                print(f"error: {printable(message)} Try '{command} --help'.", file=sys.stderr)
            raise SystemExit(2) from e
        if code == 130:  # what typer makes of a Ctrl-C
            raise KeyboardInterrupt
    raise SystemExit(code or 0)


def run() -> None:
    """`main` as the whole of a process."""
    run_process(main)
