"""Data sets that a run reads, with digests: outs of DVC's stages, local files, repositories on the hub."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from subspacelab.core.files import expanded
from subspacelab.core.references import canonical, of_pipeline
from subspacelab.tracking.dvc_files import md5_file, md5_folder

if TYPE_CHECKING:
    from subspacelab.checkpoints.references import Source

    Given: TypeAlias = str | Path | Source | None

LOCK = Path("dvc.lock")
LARGE = 1 << 30
"""Largest size in bytes whose content is hashed (2 s); for larger ones, the names and sizes are hashed."""
DIGEST_LENGTH = 36
"""Longest digest that MLflow accepts: the MD5 of a folder with the suffix `.dir`."""


@dataclass(frozen=True)
class DataSet:
    """A data set that a run reads."""

    name: str
    """DVC's path, the name of a file or folder, or `org/name`."""
    digest: str
    """MD5 of its content as in DVC, a commit on the hub, or the MD5 of its files' names and sizes (`sizes-...`)."""
    source: str
    """The path as the user named it, or an address."""
    kind: str = "local"
    """`local`, or `http` for an address."""
    rows: int | None = None
    """Rows of its tables (parquet, or else lines of .jsonl); None without tables."""
    num_bytes: int | None = None
    """Size of its files in bytes."""

    def source_json(self) -> str:
        """The source in MLflow's form, with the MD5 that identifies the run that made it (tag `dvc.out.PATH`)."""
        place = {"url": self.source} if self.kind == "http" else {"uri": self.source, "md5": self.digest}
        return json.dumps(place)

    def profile_json(self) -> str:
        """The size in MLflow's form."""
        sizes = {"num_rows": self.rows, "num_bytes": self.num_bytes}
        return json.dumps({key: value for key, value in sizes.items() if value is not None})


def stage_inputs(deps: Iterable[Path], *, lock: Path | None) -> list[DataSet]:
    """The outs of other stages among a stage's dependencies: `dvc.lock` knows their md5.

    DVC renews `lock` after each stage, so that it holds what the stage is given; None, for a stage that a person runs
    by hand, hashes what lies there. A folder that several stages fill is so many data sets.
    """
    known = recorded_outs(lock) if lock and lock.is_file() else {}
    found = []
    for dep in deps:
        beneath = {path: md5 for path, md5 in known.items() if Path(path).is_relative_to(dep) and Path(path).exists()}
        found += [_local(Path(path), path, md5) for path, md5 in (beneath or {dep.as_posix(): ""}).items()]
    return [data_set for data_set in found if data_set]


def recorded_outs(lock: Path) -> dict[str, str]:
    """Path -> MD5 of every out in a `dvc.lock`."""
    from ruamel.yaml import YAML

    stages: dict[str, Any] = (YAML(typ="safe").load(lock) or {}).get("stages", {})
    outs = [out for stage in stages.values() for out in stage.get("outs", ())]
    return {out["path"]: out["md5"] for out in outs if "md5" in out}


def named_inputs(given: "Iterable[Given]") -> list[DataSet]:
    """What a person named to a command: checkpoints, paths, `pipeline:NAME`, texts and repositories; each once.

    What is not on this disk is left out: nothing is fetched for the record.
    """
    found: list[DataSet | None] = []
    for each in dict.fromkeys(given):
        with suppress(OSError, ValueError):  # a name that no file can have: the work itself says so
            found.append(_named(str(each)) if isinstance(each, str | Path) else _of_source(each) if each else None)
    return list(dict.fromkeys(data_set for data_set in found if data_set))


def _of_source(source: "Source") -> DataSet | None:
    if source.revision is None:
        return _local(source.folder, source.folder.as_posix() if of_pipeline(source.reference) else source.name)
    return DataSet(
        source.reference, source.revision[:DIGEST_LENGTH], _address(source.reference, source.revision), "http"
    )


def _address(repo: str, commit: str) -> str:
    return f"https://huggingface.co/{repo}/tree/{commit}"


def _named(reference: str) -> DataSet | None:
    if not reference:
        return None
    from subspacelab.checkpoints.references import HUB_REFERENCE  # torch takes seconds to import
    from subspacelab.data import text

    path = _made_by_pipeline(reference) or expanded(reference)
    if path.exists():
        named = path.resolve().name if path.name in ("", "..") else path.name
        return _local(path, path.as_posix() if of_pipeline(reference) else named)
    hub = text.HUB.get(reference)
    repo = hub.repo if hub else reference
    match = HUB_REFERENCE.fullmatch(repo)
    return _of_hub(match["repo"], (hub.revision if hub else match["revision"])) if match else None


def _made_by_pipeline(reference: str) -> Path | None:
    """Where the pipeline puts what `pipeline:NAME` names: a checkpoint, its text or its questions."""
    if not of_pipeline(reference):
        return None
    from subspacelab.checkpoints.references import DEMO_ROOT
    from subspacelab.data import instructions, text

    name = canonical(reference)
    if name == "pipeline:corpus":
        return text.CORPUS
    return instructions.CORPUS.get(name, DEMO_ROOT / name.partition(":")[2])


def _of_hub(repo: str, revision: str | None) -> DataSet | None:
    """The commit of a repository, model or data set, that the hub's cache holds."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    for kind, part in (("model", ""), ("dataset", "datasets/")):
        try:
            folder = Path(snapshot_download(repo, repo_type=kind, revision=revision, local_files_only=True))
        except (OSError, HfHubHTTPError, HFValidationError):
            continue
        commit, where = folder.name, _address(part + repo, folder.name)
        return DataSet(repo, commit[:DIGEST_LENGTH], where, "http", num_rows(folder), _size(folder))
    return None


def _local(path: Path, name: str, md5: str = "") -> DataSet | None:
    """None for what cannot be read (the work itself says so), and for a pipe, which can be read only once."""
    if not (path.is_file() or path.is_dir()):
        return None
    try:
        size = _size(path)
        if not md5:
            md5 = _sizes_digest(path) if size > LARGE else md5_folder(path) if path.is_dir() else md5_file(path)
        return DataSet(_text(name), md5, _text(path.as_posix()), rows=num_rows(path), num_bytes=size)
    except OSError:
        return None


def _text(name: str) -> str:
    """A name as the store takes it: its end if it is long, and no bytes that are no text."""
    return name.encode("utf-8", "backslashreplace").decode()[-500:]


def num_rows(path: Path) -> int | None:
    """Rows of a parquet file, lines of a .jsonl; of a folder those of all its parquet files, else of its .jsonl."""
    files = _files(path)
    for suffix, count in ((".parquet", _parquet_rows), (".jsonl", _lines)):
        counted = [count(file) for file in files if file.suffix == suffix]
        if counted:
            return None if None in counted else sum(n for n in counted if n is not None)
    return None


def _parquet_rows(file: Path) -> int | None:
    import pyarrow
    import pyarrow.parquet as pq

    try:
        return int(pq.read_metadata(file).num_rows)
    except (OSError, pyarrow.ArrowException):  # whoever reads it says what is wrong
        return None


def _lines(file: Path) -> int:
    with file.open("rb") as lines:
        return sum(1 for line in lines if line.strip())


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in _files(path))


def _sizes_digest(path: Path) -> str:
    listing: Sequence[tuple[str, int]] = [(f.relative_to(path).as_posix(), f.stat().st_size) for f in _files(path)]
    digest = hashlib.md5(json.dumps(listing).encode(), usedforsecurity=False).hexdigest()
    return f"sizes-{digest}"[:DIGEST_LENGTH]
