"""Imported first by every stage script: makes Python run the code of the script's own checkout.

An editable install puts the main working tree on the path. `dvc exp run --temp` and the queue work in copies, and would
otherwise run the code of the main working tree, which may have changed.
"""

import sys
from pathlib import Path
from types import TracebackType

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))


def _say_interrupted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Reports a Ctrl-C during the imports, which take seconds, in one line; later, `run_stage_script` does."""
    if issubclass(kind, KeyboardInterrupt):
        print("error: interrupted; run the same command again to continue", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _say_interrupted
