"""Every figure of the READMEs and of docs/findings.md comes from a committed file; docs/figures.yaml says from which.

    python -m tests.repo.figures [--worktree]

A figure is a number outside of code, link targets and arXiv's names that has a decimal point, an exponent or a unit (%,
times, a unit of time, memory, speed or angle), that follows +-, or that is a share (14 of 28, 1/45) or a clock time
(13:04).

docs/figures.yaml has four parts. `files` gives each result file a name, under the command that makes it; `names` gives
one to what several templates need, by an expression over the names before it. `figures` has templates for one or more
documents: f-strings over those names and over `files`, the dictionary of all files, with abs, len, max, mean, min,
round and sum; `{each: [...], text: ...}` is one template for several values of `it`. What a
template renders to must stand in each of its documents, whatever its line breaks. `constants` are texts with numbers
that nobody measured, each with the reason.

A JSON file is its value, whose keys are attributes too; a CSV file is a pandas.DataFrame by its first column, without
lines that begin with #. Files are read as they are committed (git's HEAD), because `make repro` on another processor
writes other figures into the work tree; from the work tree where git does not know them or `--worktree` is given: for
the author of a new study, before the commit.
"""

import argparse
import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import pandas as pd
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[2]
FIGURES = "docs/figures.yaml"
FUNCTIONS = {f.__name__: f for f in (abs, len, max, mean, min, round, sum)}

_UNIT = r"(?:%|倍|分钟|秒|度|(?:times|minutes?|min|seconds?|s|ms|hours?|h|[KMGT]i?B|[KMGT]FLOP/s|degrees?)(?![A-Za-z]))"
_FIGURE = re.compile(
    rf"""(?<![A-Za-z0-9_.,])[+-]?(?:
        \d+(?:,\d{{3}})*\.\d+(?:e[+-]?\d+)?     # 0.93, 2.6e-3
        | \d+e[+-]?\d+                          # 5e-7
        | \d+(?:,\d{{3}})*(?=[\s-]?{_UNIT})      # 93 %
        | (?<=\+-\ )\d+                         # +- 3
        | \d+(?:,\d{{3}})*\ of\ \d+(?:,\d{{3}})*(?!\d|[.-]\d)  # 14 of 28
        | 1/\d+ | \d+:\d\d(?!\d)
    )""",
    re.VERBOSE,
)
_CODE_AND_LINKS = re.compile(r"^```.*?^```$|(?<!`)`[^`\n]+`|\]\([^)\s]+\)|arXiv \d+\.\d+", re.MULTILINE | re.DOTALL)
_LEFT_OVER = re.compile(r"TODO-\w*")


class Record(dict):
    """A JSON object whose keys are attributes too."""

    __getattr__ = dict.__getitem__


def read_results(root: Path, path: str, committed: bool) -> Any:
    """The content of a result file, as it is committed or as it lies in the work tree."""
    found = subprocess.run(["git", "-C", str(root), "show", f"HEAD:./{path}"], capture_output=True)
    text = found.stdout.decode() if committed and not found.returncode else (root / path).read_text("utf-8")
    if path.endswith(".json"):
        return json.loads(text, object_hook=Record)
    return pd.read_csv(io.StringIO(text), comment="#", index_col=0)


def value(expression: str, names: dict[str, Any]) -> Any:
    """An expression over `names`: our own committed text, without Python's other built-in names."""
    try:
        return eval(expression, {"__builtins__": FUNCTIONS} | names)
    except Exception as e:
        e.add_note(f"{FIGURES}: {expression}")
        raise


def rendered(entries: list[Any], names: dict[str, Any]) -> Iterator[str]:
    """What the templates of some documents render to."""
    for entry in entries:
        each = [entry] if isinstance(entry, str) else entry["each"]
        template = entry if isinstance(entry, str) else entry["text"]
        for it in each:
            yield value(f'f"""{template}"""', names | {"it": Record(it) if isinstance(it, dict) else it})


def spans(text: str, document: str) -> list[tuple[int, int]]:
    """Where `text` stands in a document, whatever the line breaks; within no longer number."""
    pattern = r"\s+".join(map(re.escape, text.split()))
    return [m.span() for m in re.finditer(rf"(?<![\d.]){pattern}(?!\d|\.\d)", document)]


def problems(root: Path = ROOT, committed: bool = True) -> list[str]:
    """One line for each figure that comes from no file, each text that stands nowhere, each mark that is left over."""
    settings = YAML(typ="safe").load((root / FIGURES).read_text("utf-8"))
    files = {name: path for made in settings["files"].values() for name, path in made.items()}
    names: dict[str, Any] = {name: read_results(root, path, committed) for name, path in files.items()}
    names["files"] = dict(names)
    for name, expression in settings["names"].items():
        names[name] = value(expression, names)
    texts: dict[str, list[str]] = {}
    for documents, entries in settings["figures"].items():
        for document in documents.split():
            texts.setdefault(document, []).extend(rendered(entries, names))
    constants = {text for texts in settings["constants"].values() for text in texts}
    found, unused = [], set(constants)
    for name, expected in texts.items():
        document = (root / name).read_text("utf-8")
        covered = list(document)
        for text in [*expected, *constants]:
            places = spans(text, document)
            if places:
                unused.discard(text)
            elif text in expected:
                found.append(f"{name}: the files give '{text}', which stands nowhere")
            for start, end in places:
                covered[start:end] = " " * (end - start)
        for start, end in (m.span() for m in _CODE_AND_LINKS.finditer(document)):
            covered[start:end] = " " * (end - start)
        lines: dict[int, list[str]] = {}
        for match in (*_FIGURE.finditer("".join(covered)), *_LEFT_OVER.finditer(document)):
            lines.setdefault(document.count("\n", 0, match.start()) + 1, []).append(match[0])
        for line, figures in sorted(lines.items()):
            found.append(f"{name}:{line}: from no file: {', '.join(figures)}")
    return found + [f"{FIGURES}: the constant '{text}' stands nowhere" for text in sorted(unused)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--worktree", action="store_true", help="read the files of the work tree, not the committed ones"
    )
    found = problems(committed=not parser.parse_args().worktree)
    print("\n".join(found) or "every figure comes from a committed file")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
