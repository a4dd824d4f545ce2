"""Updates judged as models: which checkpoints are judged, by paired differences, from where a kill left off."""

import math
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure
from tests.unit.rotation.tuned import save_pair
from torch import Tensor

from subspacelab.checkpoints import open_checkpoint
from subspacelab.rotation.application import apply
from subspacelab.rotation.judge_plots import draw_judgement
from subspacelab.rotation.judgement import Earlier, Judgement, judge

KEY = "model.layers.0.mlp.up_proj.weight"
SETTINGS = {"ranks": [1, 24], "scales": [0.5, 2.0], "seed": 3}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return save_pair(tmp_path_factory.mktemp("llama"), "llama")


def entries(folder: Path) -> Tensor:
    """A score per item that is linear in the weights."""
    return open_checkpoint(folder).read(KEY).flatten()[:64]


def row_of(table: pd.DataFrame, family: str, **wanted: object) -> pd.Series:
    rows = table[(table["family"] == family) & ~table["is_random"]]
    for column, value in wanted.items():
        rows = rows[rows[column] == value]
    assert len(rows) == 1
    return rows.iloc[0]


def test_scores_of_a_linear_task_are_on_the_line(pair: tuple[Path, Path], tmp_path: Path) -> None:
    apply(*pair, tmp_path / "earlier", scale=0.25)
    earlier = {30: Earlier(tmp_path / "earlier", of_steps=0.25, of_rates=0.5)}
    table = judge(*pair, entries, tmp_path, earlier=earlier, **SETTINGS).table  # type: ignore[arg-type]
    before, after = (entries(folder).double() for folder in pair)
    gain = after - before
    assert row_of(table, "scale", scale=1.0)["gain"] == pytest.approx(gain.mean().item(), rel=1e-6)
    assert row_of(table, "scale", scale=1.0)["gain_se"] == pytest.approx(gain.std().item() / 8, rel=1e-6)
    for scale in (0.0, 0.5, 2.0):
        row = row_of(table, "scale", scale=scale)
        assert row["gain"] == pytest.approx(scale * gain.mean().item(), rel=1e-3, abs=1e-9)
        assert row["behind"] == pytest.approx((1 - scale) * gain.mean().item(), rel=1e-3)
        assert (row["relative_norm"], row["distance"]) == pytest.approx((scale, abs(1 - scale)), rel=1e-3)
    assert row_of(table, "rank", rank=24)["distance"] == pytest.approx(0, abs=1e-6)
    assert row_of(table, "rank", rank=0)["relative_norm"] == 0
    ranked = row_of(table, "rank", rank=1)
    assert ranked["relative_norm"] ** 2 + ranked["distance"] ** 2 == pytest.approx(1, rel=1e-4)
    labels = ["scale 0", "scale 1", "rank 0", "scale 1 random", "scale 0.5", "scale 0.5 random"]
    assert list(table["variant"][:6]) == labels
    assert {"rotation", "spectrum random", "rank 24 random", "snapshot 30", "predicted_by_rate 30"} < {
        *table["variant"]
    }
    assert table["variant"].is_unique
    assert row_of(table, "snapshot")["distance"] == pytest.approx(0.75, rel=1e-3)
    assert row_of(table, "predicted")["distance"] == pytest.approx(0, abs=1e-3)
    assert row_of(table, "predicted_by_rate")["distance"] == pytest.approx(0.5, rel=1e-3)


def test_each_part_stands_beside_a_random_update_of_its_norm(pair: tuple[Path, Path], tmp_path: Path) -> None:
    table = judge(*pair, entries, tmp_path, **SETTINGS).table  # type: ignore[arg-type]
    keys = ["family", "part", "rank", "scale"]
    real, random = (table[table["is_random"] == flag].set_index(keys) for flag in (False, True))
    assert len(random) == len(real) - 2  # but for the base, and for norms and biases alone
    for key, row in random.iterrows():
        assert row["relative_norm"] == pytest.approx(real.loc[key]["relative_norm"], rel=1e-3)
        # Orthogonal to the update, but for chance.
        assert row["distance"] == pytest.approx(math.hypot(1, row["relative_norm"]), rel=0.05)


def test_a_killed_run_continues_to_the_same_table(pair: tuple[Path, Path], tmp_path: Path) -> None:
    wanted = judge(*pair, entries, tmp_path / "whole", **SETTINGS).table  # type: ignore[arg-type]
    scored = []

    def failing(folder: Path) -> Tensor:
        scored.append(folder)
        if len(scored) == 5:
            raise KeyboardInterrupt
        return entries(folder)

    with pytest.raises(KeyboardInterrupt):
        judge(*pair, failing, tmp_path / "broken", **SETTINGS)  # type: ignore[arg-type]
    assert not list((tmp_path / "broken").glob(".*"))
    found = judge(*pair, failing, tmp_path / "broken", **SETTINGS).table  # type: ignore[arg-type]
    assert len(scored) == len(wanted) + 1
    pd.testing.assert_frame_equal(found, wanted, check_exact=True)


def test_a_judgement_is_saved_read_and_drawn(pair: tuple[Path, Path], tmp_path: Path) -> None:
    earlier = {s: Earlier(pair[1], s / 4, s / 4) for s in (1, 2)}
    found = judge(*pair, entries, tmp_path, earlier=earlier, **SETTINGS)  # type: ignore[arg-type]
    for i, judgement in enumerate((found, Judgement.empty())):
        judgement.save(tmp_path / f"{i}")
        read = Judgement.load(tmp_path / f"{i}")
        pd.testing.assert_frame_equal(read.table, judgement.table, check_exact=True)
        assert isinstance(read.plot(), Figure)
    draw_judgement(found, tmp_path / "p.png", score="mean IoU")
    assert (tmp_path / "p.png").stat().st_size > 10_000
