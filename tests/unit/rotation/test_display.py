import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from subspacelab.plotting.terminal import show_number
from subspacelab.rotation.aggregate import headline as headline_of
from subspacelab.rotation.comparison import Comparison
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
    (energy,) = [line for line in text(out).splitlines() if line.lstrip().startswith("principal_energy_02")]
    assert show_number(comparison.metrics["all"]["principal_energy_02"]["z"]) in energy
    out = console()
    print_comparison(replace(comparison, metrics=comparison.metrics | {"null": {"draws": 0}}), out)
    assert "random updates" not in text(out).partition("Do the rotations")[0]
    assert "Against" not in text(out)
    assert "base -> stage2: " not in text(out)
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
    assert tracker.headline == comparison.headline
    assert tracker.metrics["z/nss_02"] == [(0, comparison.metrics["all"]["nss_02"]["z"])]
    assert set(tracker.tables) == {"layers", "modules"}


def test_the_headline_is_of_all_weights_beside_random_updates(comparison: Comparison) -> None:
    every, layers, headline = comparison.metrics["all"], comparison.layers, comparison.headline
    energy, cosine = every["principal_energy_02"], every["cosine_01_12"]
    assert (headline["leading_energy"], headline["leading_energy_random"]) == (energy["mean"], energy["null_mean"])
    assert (headline["stage_cosine"], headline["stage_cosine_z"]) == (cosine["mean"], cosine["z"])
    values, means, variances = [], [], []
    for side in ("U", "Vh"):
        rows = layers[~layers[f"identity_{side}"]]
        values += rows[f"rotation_mse_{side}"].tolist()
        means += rows[f"rotation_mse_{side}_null_mean"].tolist()
        variances += (rows[f"rotation_mse_{side}_null_std"] ** 2).tolist()
    assert headline["composition_error_ratio"] == pytest.approx(sum(values) / sum(means), rel=1e-12)
    z = (sum(values) - sum(means)) / sum(variances) ** 0.5
    assert headline["composition_error_z"] == pytest.approx(z, rel=1e-9)
    assert set(headline_of(layers.drop(columns=[c for c in layers if "_null_" in c]))) == {
        "leading_energy",
        "stage_cosine",
    }
