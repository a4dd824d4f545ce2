"""Markdown for the description of a run in MLflow's UI (tag `mlflow.note.content`)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

NOTE = "mlflow.note.content"
"""Tag that MLflow's UI shows as a run's description."""
SHOWN, WIDTH = 2, 720
"""How many of its pictures a run's description shows, and how wide in pixels: MLflow's UI cuts off what is wider."""
FOLDER = "description"
"""The folder of the run's artifacts in which these small pictures lie."""


@dataclass(frozen=True)
class Summary:
    """The findings of one study."""

    title: str
    """Heading."""
    sentences: Sequence[str]
    """The findings in sentences, with their numbers."""
    picture: Path | None = None
    """The file that shows them best."""


def note(
    run_id: str,
    description: str,
    headline: Mapping[str, float],
    pictures: Sequence[str] = (),
    summaries: Sequence[Summary] = (),
) -> str:
    """The description: what the run is, what was found, the headline metrics, and pictures by their names.

    All pictures, those of `summaries` too, are artifacts of the run that `small_picture` made.
    """
    parts = [description, *_found(run_id, summaries), _table(headline), *(_picture(run_id, name) for name in pictures)]
    return "\n\n".join(part for part in parts if part)


def _found(run_id: str, summaries: Sequence[Summary]) -> Iterator[str]:
    for summary in summaries:
        yield f"### {summary.title}"
        yield " ".join(summary.sentences)
        if summary.picture:
            yield _picture(run_id, summary.picture.name)


def _table(headline: Mapping[str, float]) -> str:
    if not headline:
        return ""
    rows = [f"| {name} | {value:.4g} |" for name, value in headline.items()]
    return "\n".join(["| headline metric | value |", "|---|---|", *rows])


def _picture(run_id: str, name: str) -> str:
    """An artifact by its address on the server that shows the description."""
    return f"![{Path(name).stem}](get-artifact?{urlencode({'path': f'{FOLDER}/{name}', 'run_uuid': run_id})})"


def small_picture(picture: Path, folder: Path) -> Path | None:
    """The picture in `folder`, at most `WIDTH` wide; None for what is no picture."""
    from PIL import Image

    try:
        with Image.open(picture) as image:
            image.thumbnail((WIDTH, image.height))
            image.save(folder / picture.name)
    except (OSError, ValueError):
        return None
    return folder / picture.name
