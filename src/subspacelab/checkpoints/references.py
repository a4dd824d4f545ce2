"""From a reference to a folder on this disk: a local folder, `org/name[@revision]`, or `pipeline:NAME`."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from subspacelab.checkpoints.hub import fetch_from_hub
from subspacelab.checkpoints.index import PREFERENCE
from subspacelab.core.errors import CheckpointError
from subspacelab.core.files import expanded, read_json, real_path, remove_partials_of, write_json
from subspacelab.core.ownership import require_own_entries, require_same_job
from subspacelab.core.references import PIPELINE, of_pipeline

POINTER_NAME = "reference.json"
HUB_REFERENCE = re.compile(r"(?P<repo>[\w][\w.-]*/[\w][\w.-]*)(?:@(?P<revision>[\w][\w./-]*))?")
DEMO_ROOT = Path("data/checkpoints")
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")


@dataclass(frozen=True)
class Source:
    """A checkpoint on this disk, and where it came from."""

    reference: str
    """The reference: a path, `org/name` or `pipeline:NAME` (also if the caller gave the older name, `demo:NAME`)."""
    folder: Path
    """Folder of the files; may be the path of a single weight file."""
    revision: str | None
    """Commit of a checkpoint from the hub; else None."""
    name: str
    """Short name for outputs: the last part of the path or of the repository's name."""


def local_source(path: Path, reference: str | None = None) -> Source:
    """The source for a local folder or file; pointer files are not followed. ValueError if its path gives no name."""
    absolute = real_path(path) if path.name in ("", "..") else path.absolute()
    name = absolute.stem if absolute.is_file() else absolute.name
    if name in ("", ".", ".."):
        raise CheckpointError(f"{path}: has no name of its own that outputs could take; give the checkpoint's own path")
    return Source(reference or str(path), path, None, name)


@dataclass(frozen=True)
class Repository:
    """A repository on the hub that has not been looked up yet."""

    repo: str
    """`org/name`."""
    revision: str | None
    """Branch, tag or commit; None for the main branch."""
    name: str
    """Short name for outputs."""

    def source(self, folder: Path, commit: str) -> Source:
        """The source for this repository's files in `folder`, at `commit`."""
        return Source(self.repo, folder, commit, self.name)


def locate_reference(reference: str, *, demo_root: Path = DEMO_ROOT) -> Source | Repository:
    """The meaning of a reference, without asking the hub; pointer files are followed. Errors as `resolve_reference`."""
    if of_pipeline(reference):
        return _followed(_pipeline_source(reference, demo_root))
    path = expanded(reference)
    if reference and path.exists():
        return _followed(local_source(path, reference))
    match = HUB_REFERENCE.fullmatch(reference)
    if match is None or path.suffix in WEIGHT_SUFFIXES:
        raise CheckpointError(
            f"{reference}: no such checkpoint; give a local folder or file, org/name[@revision] or pipeline:NAME"
        )
    return Repository(match["repo"], match["revision"], match["repo"].rpartition("/")[2])


def resolve_reference(reference: str, *, demo_root: Path = DEMO_ROOT) -> Source:
    """Finds a local folder or file, a hub repository at a commit, or a checkpoint of the pipeline under `demo_root`.

    A folder that holds only a pointer file (`write_reference`) stands for the hub commit that the file names, and keeps
    its own name. ValueError, in one line, says what was not found and the remedy.
    """
    place = locate_reference(reference, demo_root=demo_root)
    if isinstance(place, Source):
        return place
    return place.source(*fetch_from_hub(place.repo, place.revision))


def write_reference(folder: Path, source: Source) -> None:
    """Makes `folder` stand for `source` at its commit: writes a pointer file, which `resolve_reference` follows.

    ValueError if the folder holds anything but a pointer to the same source.
    """
    pointer, content = folder / POINTER_NAME, {"reference": source.reference, "revision": source.revision}
    remove_partials_of(pointer)
    require_own_entries(folder, [POINTER_NAME], "a pointer to a checkpoint")
    if pointer.exists():
        reference, revision = _read_pointer(pointer)
        require_same_job(folder, {"reference": reference, "revision": revision}, content)
    write_json(pointer, content)


def _pipeline_source(reference: str, demo_root: Path) -> Source:
    name = reference.partition(":")[2]
    folder = demo_root / name
    if not re.fullmatch(r"[\w-]+", name):
        raise CheckpointError(f"{reference}: not a checkpoint of the pipeline; write pipeline:NAME, e.g. pipeline:base")
    if not any((folder / entry).exists() for entry in (*PREFERENCE, POINTER_NAME)):
        raise CheckpointError(f"{reference}: not built yet ({folder}); run `dvc repro checkpoint_{name}`")
    return Source(f"{PIPELINE}{name}", folder, None, name)


def _followed(source: Source) -> Source | Repository:
    """The source itself or, if it is a pointer file, the source it names, under the pointer's own name."""
    pointer = source.folder / POINTER_NAME
    if not pointer.is_file() or any((source.folder / name).exists() for name in PREFERENCE):
        return source
    target, revision = _read_pointer(pointer)
    place = expanded(target)
    if place.exists():
        if (place / POINTER_NAME).exists():
            raise CheckpointError(f"{pointer}: points to {target}, itself a pointer; point to the checkpoint")
        return Source(target, place, revision, source.name)
    found = locate_reference(f"{target}@{revision}" if revision else target)
    return replace(found, name=source.name)


def _read_pointer(pointer: Path) -> tuple[str, str | None]:
    """Reference and revision of a pointer file."""
    content = read_json(pointer)
    if not isinstance(content, dict) or set(content) != {"reference", "revision"}:
        raise CheckpointError(f"{pointer}: must hold the keys 'reference' and 'revision' only; build it again")
    reference, revision = content["reference"], content["revision"]
    if not isinstance(reference, str) or not reference or not isinstance(revision, str | None):
        raise CheckpointError(f"{pointer}: 'reference' must be text, 'revision' text or null; build it again")
    return reference, revision


REPORTS = Path("reports/checkpoints")


def take_from_hub(reference: str, folder: Path) -> bool:
    """Writes a pointer to the reference's commit; returns False for `train`, a checkpoint that the pipeline trains.

    ValueError if the hub does not know the reference or cannot be reached.
    """
    if reference == "train" or reference == f"demo:{folder.name}":  # the latter in studies of earlier versions
        return False
    source = resolve_reference(reference)
    write_reference(folder, source)
    write_json(REPORTS / f"{folder.name}.json", {"reference": source.reference, "revision": source.revision})
    return True
