import io
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from subspacelab.plotting.tables import show_number
from subspacelab.rotation.compare import Comparison
from subspacelab.rotation.display import print_comparison, print_decomposition
from subspacelab.rotation.factors import read_decomposition
from subspacelab.rotation.logging import track_comparison
from subspacelab.rotation.plots import PICTURES
from subspacelab.tracking import MemoryTracker


def console() -> Console:
    return Console(file=io.StringIO(), width=200)


def text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_decomposition_shows_shapes_errors_and_what_was_skipped(folders: tuple[Path, Path, Path]) -> None:
    out = console()
    print_decomposition(read_decomposition(folders[0]), out)
    assert "64 x 48" in text(out)
    assert "skipped, left out by include=" in text(out)


def test_a_comparison_shows_groups_and_marks_identities(comparison: Comparison) -> None:
    out = console()
    print_comparison(comparison, out)
    update, composition = [line for line in text(out).splitlines() if "vision QKV" in line]
    assert "identity" in composition
    assert "identity" not in update
    assert "note: " in text(out)
    assert "Against 2 random updates" in text(out)
    (energy,) = [line for line in text(out).splitlines() if "principal_energy_02" in line]
    assert show_number(comparison.metrics["all"]["principal_energy_02"]["z"]) in energy
    out = console()
    print_comparison(replace(comparison, metrics=comparison.metrics | {"null": {"draws": 0}}), out)
    assert "random updates" not in text(out).partition("Do the rotations")[0]
    assert "Against" not in text(out)
    assert "not compared" not in text(out)


def test_what_was_not_compared_is_named(comparison: Comparison) -> None:
    unmatched = [{"weight": "a.b", "reason": "absent in stage1"}]
    out = console()
    print_comparison(replace(comparison, metrics=comparison.metrics | {"unmatched": unmatched}), out)
    assert "not compared, absent in stage1: a.b" in text(out)


def test_a_comparison_is_tracked_with_tables_and_pictures(comparison: Comparison, saved: Path) -> None:
    tracker = MemoryTracker()
    track_comparison(comparison, saved, [saved / name for name in PICTURES], tracker)
    mean = comparison.metrics["all"]["angle_max_02"]["mean"]
    assert tracker.metrics["mean/angle_max_02"] == [(0, mean)]
    assert tracker.metrics["z/nss_02"] == [(0, comparison.metrics["all"]["nss_02"]["z"])]
    assert set(tracker.tables) == {"layers", "modules"}
