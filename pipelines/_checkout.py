"""Imported first by every stage script: makes the code of its own checkout the code that runs.

An editable install puts the main working tree on the path; `dvc exp run --temp` and the queue work in copies, and
would otherwise run whatever the working tree holds by then.
"""

import sys
from pathlib import Path
from types import TracebackType

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))


def _say_interrupted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A Ctrl-C during the imports, which take seconds, is one line too; afterwards `run_stage_script` says it."""
    if issubclass(kind, KeyboardInterrupt):
        print("error: interrupted; run the same command again to continue", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _say_interrupted
