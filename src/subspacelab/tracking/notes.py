"""What stands in the description of a run in MLflow's UI (tag `mlflow.note.content`): Markdown."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

NOTE = "mlflow.note.content"
"""The tag that MLflow's UI shows as a run's description."""
SHOWN = 2
"""How many of its pictures a run's description shows."""


@dataclass(frozen=True)
class Summary:
    """What one study found."""

    title: str
    """Its heading."""
    sentences: Sequence[str]
    """The findings, with their numbers."""
    picture: Path | None = None
    """The file that shows them best; it is recorded with the page."""


def note(
    run_id: str,
    description: str,
    headline: Mapping[str, float],
    pictures: Sequence[str] = (),
    summaries: Sequence[Summary] = (),
) -> str:
    """The description: what the run is, what was found, the headline metrics, and `pictures`, artifacts of the run."""
    parts = [description, *_found(run_id, summaries), _table(headline)]
    parts += [_picture(run_id, path) for path in pictures[:SHOWN]]
    return "\n\n".join(part for part in parts if part)


def _found(run_id: str, summaries: Sequence[Summary]) -> Iterator[str]:
    for summary in summaries:
        yield f"### {summary.title}"
        yield " ".join(summary.sentences)
        if summary.picture:
            yield _picture(run_id, f"pictures/{summary.picture.name}")


def _table(headline: Mapping[str, float]) -> str:
    if not headline:
        return ""
    rows = [f"| {name} | {value:.4g} |" for name, value in headline.items()]
    return "\n".join(["| headline metric | value |", "|---|---|", *rows])


def _picture(run_id: str, path: str) -> str:
    """An artifact by the address at which the server that shows the description gives it."""
    return f"![{Path(path).stem}](get-artifact?{urlencode({'path': path, 'run_uuid': run_id})})"
