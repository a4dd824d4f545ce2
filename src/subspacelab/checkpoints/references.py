"""From what a person writes to a folder on this disk: a folder, `org/name[@revision]`, `pipeline:NAME`."""

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
    """A checkpoint that is on this disk, and where it came from."""

    reference: str
    """What was asked for: a path, `org/name` or `pipeline:NAME` (also where `demo:NAME`, its older name, was asked)."""
    folder: Path
    """Where its files are; may be the path of a single weight file."""
    revision: str | None
    """The commit, for a checkpoint of the hub."""
    name: str
    """Short name for outputs: the last part of the folder or repository that was asked for."""


def local_source(path: Path, reference: str | None = None) -> Source:
    """The source of a folder or file as it lies, following nothing; ValueError if nothing can be called by its name."""
    absolute = real_path(path) if path.name in ("", "..") else path.absolute()
    name = absolute.stem if absolute.is_file() else absolute.name
    if name in ("", ".", ".."):
        raise CheckpointError(f"{path}: has no name of its own that outputs could take; give the checkpoint's own path")
    return Source(reference or str(path), path, None, name)


@dataclass(frozen=True)
class Repository:
    """A repository of the hub, not looked up yet."""

    repo: str
    """`org/name`."""
    revision: str | None
    """Branch, tag or commit that was asked for; None for the main branch."""
    name: str
    """Short name for outputs."""

    def source(self, folder: Path, commit: str) -> Source:
        """The source that `folder` is, with this repository's files at `commit`."""
        return Source(self.repo, folder, commit, self.name)


def locate_reference(reference: str, *, demo_root: Path = DEMO_ROOT) -> Source | Repository:
    """What a reference means, without asking the hub; pointer files are followed. Errors as `resolve_reference`."""
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

    A folder that holds only a pointer file (`write_reference`) stands for the hub commit it names, and
    keeps its own name. ValueError, in one line, says what was not found and what to do.
    """
    place = locate_reference(reference, demo_root=demo_root)
    if isinstance(place, Source):
        return place
    return place.source(*fetch_from_hub(place.repo, place.revision))


def write_reference(folder: Path, source: Source) -> None:
    """Makes `folder` stand for `source` at its commit: one pointer file, which `resolve_reference` follows.

    ValueError for a folder that holds anything but a pointer to this very source.
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
    """The source itself, or what its pointer file names, under the pointer's own name."""
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
    """Writes a pointer to the reference's commit instead of a checkpoint; False for `train`: it is trained here.

    Raises ValueError when the hub does not know the reference or cannot be reached.
    """
    if reference == "train" or reference == f"demo:{folder.name}":  # the latter in studies of earlier versions
        return False
    source = resolve_reference(reference)
    write_reference(folder, source)
    write_json(REPORTS / f"{folder.name}.json", {"reference": source.reference, "revision": source.revision})
    return True
