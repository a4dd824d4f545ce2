"""Protection of files at the pipeline's outs, since DVC removes whatever is there before it runs a stage.

`python -m subspacelab.pipeline.workspace check` (used by `make repro`) fails if something else is there; `... clean`
(used by `make clean`) removes the pipeline's own results.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from subspacelab.core.errors import one_line_errors
from subspacelab.core.files import remove_folder
from subspacelab.pipeline.dvc_process import dvc_command, dvc_environment, dvc_json, require_dvc
from subspacelab.pipeline.params import read_yaml
from subspacelab.pipeline.process import run_process
from subspacelab.pipeline.stage import DVC_FILE, WORK, read_declaration, remove_left_work
from subspacelab.tracking.dvc_files import md5_file, md5_folder
from subspacelab.tracking.store import main_root


def require_own_outs() -> None:
    """ValueError for a file or folder at the path of an out that was not made by the pipeline.

    Made by the pipeline is what dvc.lock describes, what DVC's cache holds, and what an interrupted stage was writing.
    """
    require_dvc()
    found = [Path(name) for name in _named(dvc_json("data", "status").get("uncommitted", {}))]
    cache, begun = _cache(), set(_begun_outs())
    for place in found:
        if place not in begun and not _is_cached(place, cache):
            raise ValueError(
                f"{place}: not made by the pipeline, or changed since, and DVC would remove it;"
                " move it away first, or remove it if nothing in it is needed"
            )


def remove_outs() -> None:
    """Removes the outs that match dvc.lock and are in DVC's cache, and the unfinished work of killed stages."""
    require_dvc()
    status = dvc_json("data", "status", "--unchanged")
    kept = {*status.get("not_in_cache", []), *_named(status.get("uncommitted", {}))}
    for name in sorted({*status.get("unchanged", []), *_named(status.get("committed", {}))} - kept):
        if Path(name).is_dir():
            remove_folder(Path(name))
        else:
            Path(name).unlink(missing_ok=True)
    for name in sorted(name for name in kept if Path(name).exists()):
        print(f"{name} stays: changed since the pipeline made it, or not in DVC's cache", file=sys.stderr)
    for stage in remove_left_work():
        print(f"{WORK / stage} stays: the stage is at work", file=sys.stderr)


def _named(changes: Mapping[str, list[str]]) -> list[str]:
    """The paths that are new or modified."""
    return [*changes.get("added", []), *changes.get("modified", [])]


def _begun_outs() -> Iterator[Path]:
    """The outs of the stages that were interrupted."""
    stages = read_yaml(DVC_FILE).get("stages") or {}
    for root in (main_root() / WORK).glob("*"):
        name, _, item = root.name.partition("@")
        if name in stages and any(path.is_dir() for path in root.glob("*")):  # not of a stage that is no more
            yield from read_declaration(name, item or None).outs


def _cache() -> Path:
    shown = subprocess.run(dvc_command("cache", "dir"), env=dvc_environment(), capture_output=True, encoding="utf-8")
    return Path(shown.stdout.strip())


def _is_cached(place: Path, cache: Path) -> bool:
    md5 = md5_folder(place) if place.is_dir() else md5_file(place)
    return (cache / "files" / "md5" / md5[:2] / md5[2:]).is_file()


_COMMANDS: dict[str, Callable[[], None]] = {"check": require_own_outs, "clean": remove_outs}


def _main() -> None:
    with one_line_errors():
        word = sys.argv[1] if len(sys.argv) == 2 else ""
        if word not in _COMMANDS:
            raise ValueError(f"expected one word of {sorted(_COMMANDS)}, got {sys.argv[1:]}")
        _COMMANDS[word]()


if __name__ == "__main__":
    run_process(_main)
