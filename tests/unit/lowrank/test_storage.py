"""What is stored of an approximation, in how many bytes, and what is read back."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tests.unit.lowrank.caches import write_random_cache
from tests.unit.lowrank.trainings import train_tiny

from subspacelab.linalg.token_svd import token_svd
from subspacelab.lowrank.baselines import PCA_BASIS, RANDOM_BASIS, RANDOM_SKETCH, SVD
from subspacelab.lowrank.comparison import Comparison, compare
from subspacelab.lowrank.features import Features
from subspacelab.lowrank.storage import COMPUTED, FORMATS, X, num_kept, read_back, stored_bytes, summarise_storage
from subspacelab.lowrank.storage_plots import PICTURES, draw_pictures

RANK, RANKS, SEED = 4, (2, 8, 16, 64), 3


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Features:
    return write_random_cache(tmp_path_factory.mktemp("cache"), count=40, dim=20)


@pytest.fixture(scope="module")
def comparison(features: Features, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Sketch and a network that refines, at ranks beside theirs."""
    results = tmp_path_factory.mktemp("results")
    train_tiny(features, results, "Sketch", epochs=1, seed=SEED)
    train_tiny(features, results, "MLP", epochs=1, seed=SEED, refine=True)
    return compare(features, results, ranks=RANKS)


def matrices(seed: int = 0) -> torch.Tensor:
    return torch.randn(3, 16, 5, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("format", "levels"), [("int8", 127), ("int4", 7)])
@pytest.mark.parametrize("dim", [-1, -2])
def test_whole_numbers_are_steps_of_each_columns_largest(format: str, levels: int, dim: int) -> None:
    x = matrices()
    back = read_back(x, format, dim)
    step = x.abs().numpy().max(axis=dim, keepdims=True) / levels
    np.testing.assert_allclose(back.numpy(), np.round(x.numpy() / step) * step, rtol=0, atol=1e-6)
    assert torch.equal(read_back(levels * torch.eye(4), format, dim), levels * torch.eye(4))  # on the grid
    assert not read_back(torch.zeros(2, 4, 4), format, dim).any()  # and no NaN


@pytest.mark.parametrize("dim", [-1, -2])
def test_pruning_keeps_the_larger_half_of_each_column(dim: int) -> None:
    x = matrices()
    kept = read_back(x, "pruned", dim).numpy() != 0
    rank = np.argsort(np.argsort(-np.abs(x.numpy()), axis=dim), axis=dim)
    assert (kept == (rank < (x.shape[dim] + 1) // 2)).all()


@pytest.mark.parametrize(("format", "relative"), [("float32", 0.0), ("float16", 2**-11), ("bfloat16", 2**-8)])
def test_floats_are_rounded_to_nearest_and_none_becomes_infinite(format: str, relative: float) -> None:
    x = matrices()
    error = (read_back(x, format, -1) - x).abs() / x.abs()
    assert error.max() <= relative
    assert error.max() >= relative / 4
    assert torch.isfinite(read_back(torch.tensor([[1e30, -1e38]]), format, -1)).all()


@pytest.mark.parametrize("shape", [(16, 5), (256, 128), (3, 7)])
@pytest.mark.parametrize("dim", [-1, -2])
def test_bytes_are_those_of_what_would_be_written(shape: tuple[int, int], dim: int) -> None:
    columns, length = np.prod(shape) // shape[dim], shape[dim]
    scales, entries = np.zeros(columns, np.float32).nbytes, int(np.prod(shape))
    kept = np.zeros((columns, num_kept(length)), np.float16)
    written = {
        "float32": np.zeros(shape, np.float32).nbytes,
        "float16": np.zeros(shape, np.float16).nbytes,
        "bfloat16": torch.zeros(shape, dtype=torch.bfloat16).nbytes,
        "int8": np.zeros(shape, np.int8).nbytes + scales,
        "int4": np.packbits(np.zeros((entries, 4), bool).ravel()).nbytes + scales,
        "pruned": kept.nbytes + np.packbits(np.zeros(entries, bool)).nbytes,
    }
    assert {format: stored_bytes(shape, format, dim) for format in FORMATS} == written


def rows_of(comparison: Comparison, method: str, format: str = COMPUTED) -> pd.DataFrame:
    table = comparison.storage
    return table[(table["method"] == method) & (table["format"] == format)].set_index("rank")


def test_every_method_is_there_at_its_ranks_and_formats(comparison: Comparison) -> None:
    formats = comparison.storage.groupby(["method", "rank"])["format"].agg(list).to_dict()
    every, curve = list(FORMATS), [2, RANK, 8]  # 16 is the full rank
    expected = {(X, 16): every} | {(m, r): every for m in (SVD, PCA_BASIS) for r in curve}
    expected |= {(m, r): [COMPUTED] for m in ("PCA sketch", RANDOM_BASIS) for r in curve}
    expected |= {(m, RANK): [COMPUTED] for m in ("Sketch", "MLP", RANDOM_SKETCH)}
    assert formats == expected


def test_cosines_are_those_of_the_methods_themselves(features: Features, comparison: Comparison) -> None:
    rows = features.split(SEED)["test"]
    optimum = token_svd(features.read(rows)).cosines().mean(0)
    for rank, cosine in rows_of(comparison, SVD)["cosine"].items():
        assert cosine == pytest.approx(optimum[rank - 1].item(), abs=1e-6)  # A and B in float32
    for method, measures in comparison.metrics["methods"].items():
        assert rows_of(comparison, method)["cosine"][RANK] == pytest.approx(measures["cosine"]["mean"], abs=1e-6)
    assert rows_of(comparison, X)["cosine"].item() == pytest.approx(1, abs=1e-12)


def test_fewer_bits_are_fewer_bytes_and_a_lower_cosine(comparison: Comparison) -> None:
    for method in (X, SVD, PCA_BASIS):
        for rank in rows_of(comparison, method).index:
            by_format = {f: rows_of(comparison, method, f).loc[rank] for f in ("float32", "float16", "int8", "int4")}
            assert sorted(by_format, key=lambda f: by_format[f]["bytes_per_picture"]) == list(by_format)[::-1]
            assert by_format["int4"]["cosine"] < by_format["float32"]["cosine"]
            if method == X:  # the error of the format alone
                assert sorted(by_format, key=lambda f: by_format[f]["relative_error"]) == list(by_format)


def test_a_shared_b_is_counted_once(comparison: Comparison) -> None:
    basis, own = rows_of(comparison, PCA_BASIS, "int8").loc[RANK], rows_of(comparison, SVD, "int8").loc[RANK]
    assert basis["bytes_per_picture"] == 16 * RANK + 4 * RANK
    assert basis["bytes_once"] == 20 * RANK + 4 * RANK
    assert own["bytes_per_picture"] == basis["bytes_per_picture"] + basis["bytes_once"]
    assert own["bytes_once"] == 0


def test_the_front_is_what_nothing_smaller_beats(comparison: Comparison) -> None:
    table = comparison.storage
    for row in table.itertuples():
        smaller = table[table["bytes_per_picture"] <= row.bytes_per_picture].drop(index=row.Index)
        beaten = (smaller["cosine"] > row.cosine).any()
        equal = ((smaller["cosine"] == row.cosine) & (smaller["bytes_per_picture"] < row.bytes_per_picture)).any()
        assert row.on_front == (not beaten and not equal), row
    best = comparison.best_storage(200)
    assert best["bytes_per_picture"] <= 200
    assert best["cosine"] == table[table["bytes_per_picture"] <= 200]["cosine"].max()
    with pytest.raises(ValueError, match="budget: 3 bytes, the smallest takes"):
        comparison.best_storage(3)
    with pytest.raises(ValueError, match="by='task_iou': was not measured"):
        comparison.best_storage(200, by="task_iou")


@pytest.mark.parametrize(
    ("given", "said"),
    [({"ranks": [4, 0]}, "ranks: 0; choose 1"), ({"judged_formats": ["int3"]}, "'int3' is none; allowed are float32")],
)
def test_what_cannot_be_stored_is_refused(features: Features, tmp_path: Path, given: dict, said: str) -> None:
    train_tiny(features, tmp_path, "Sketch", epochs=1, seed=SEED)
    with pytest.raises(ValueError, match=said):
        compare(features, tmp_path, **given)


def test_what_was_not_judged_neither_stands_on_the_front_nor_hides_it() -> None:
    rows = [(X, COMPUTED, 8, 0.5), (X, "int8", 2, np.nan), (X, "int4", 1, 0.4), (SVD, COMPUTED, 4, 0.3)]
    found = summarise_storage(
        pd.DataFrame(
            [
                {"method": m, "rank": 1, "format": f, "bytes_per_picture": b, "bytes_once": 0, "cosine": 0.5,
                 "relative_error": 0.5, "task_iou": iou}
                for m, f, b, iou in rows
            ]
        )
    )  # fmt: skip
    assert found["on_task_front"].tolist() == [True, False, True, False]


def test_changes_are_paired_with_x_itself() -> None:
    keys = {"bytes_per_picture": 1, "bytes_once": 0, "cosine": 0.5, "relative_error": 0.5}
    ious = {(X, COMPUTED): [0.9, 0.1, 0.5], (X, "int4"): [0.8, 0.1, 0.6], (SVD, COMPUTED): [0.6, 0.0, 0.3]}
    found = summarise_storage(
        pd.DataFrame(
            [{"method": m, "rank": 1, "format": f, "task_iou": i} | keys for (m, f), v in ious.items() for i in v]
        )
    )
    for row, values in zip(found.itertuples(), ious.values(), strict=True):
        change = np.array(values) - ious[X, COMPUTED]
        assert row.task_iou == pytest.approx(np.mean(values))
        assert row.task_iou_se == pytest.approx(np.std(values, ddof=1) / 3**0.5)
        assert row.task_change == pytest.approx(change.mean(), abs=1e-12)
        assert row.task_change_se == pytest.approx(change.std(ddof=1) / 3**0.5)


def test_tables_and_pictures_without_a_judge(comparison: Comparison, tmp_path: Path) -> None:
    comparison.save(tmp_path)
    again = Comparison.load(tmp_path)
    pd.testing.assert_frame_equal(again.storage, comparison.storage)
    assert again.metrics["task"] == {}
    assert comparison.storage["task_iou"].isna().all()
    draw_pictures(tmp_path, comparison)
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in PICTURES)
