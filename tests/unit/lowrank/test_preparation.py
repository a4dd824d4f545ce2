from pathlib import Path

import numpy as np
import pytest
import torch
from tests.unit.lowrank.caches import random_features, write_cache, write_random_cache

from subspacelab.lowrank import preparation
from subspacelab.lowrank.features import Features
from subspacelab.lowrank.metrics import similarity
from subspacelab.lowrank.preparation import BatchReader, Normalisation, feature_statistics

ROWS = list(range(1, 23))  # more than one batch, and neither first nor last picture


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Features:
    return write_random_cache(tmp_path_factory.mktemp("cache"))


def test_rms_brings_the_root_mean_square_of_the_training_pictures_to_one(features: Features) -> None:
    normalisation = feature_statistics(features, ROWS, "rms").normalisation
    x = normalisation.apply(features.read(ROWS)).double()
    # One division in float32 per entry: 6e-8 each, less in the mean.
    assert x.square().mean().sqrt() == pytest.approx(1, abs=1e-7)
    assert normalisation.kind == "rms"


def test_rms_keeps_ranks_and_cosines(features: Features) -> None:
    normalisation = feature_statistics(features, ROWS, "rms").normalisation
    x = features.read(ROWS)
    y = x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    before, after = similarity(x, y), similarity(normalisation.apply(x), normalisation.apply(y))
    # Scaling rounds each float32 entry once.
    torch.testing.assert_close(after.cosine, before.cosine, rtol=0, atol=1e-7)
    torch.testing.assert_close(after.relative_error, before.relative_error, rtol=1e-6, atol=0)
    torch.testing.assert_close(after.mse * normalisation.scale**2, before.mse, rtol=1e-6, atol=0)


def test_layernorm_is_torchs_without_weights(features: Features) -> None:
    normalisation = feature_statistics(features, ROWS, "layernorm").normalisation
    assert normalisation == Normalisation("layernorm", 1.0)
    x = features.read(ROWS)
    assert torch.equal(normalisation.apply(x), torch.nn.LayerNorm(x.shape[-1], elementwise_affine=False)(x))


def test_none_changes_nothing(features: Features) -> None:
    normalisation = feature_statistics(features, ROWS, "none").normalisation
    assert normalisation == Normalisation()
    assert torch.equal(normalisation.apply(features.read([0])), features.read([0]))


def test_undo_goes_back_to_the_raw_scale(features: Features) -> None:
    normalisation = feature_statistics(features, ROWS, "rms").normalisation
    x = features.read(ROWS)
    # A division and a multiplication in float32.
    torch.testing.assert_close(normalisation.undo(normalisation.apply(x)), x, rtol=3e-7, atol=0)


@pytest.mark.parametrize("kind", ["rms", "layernorm", "none"])
def test_the_basis_is_that_of_numpy_up_to_signs(features: Features, kind: str) -> None:
    statistics = feature_statistics(features, ROWS, kind)
    x = Normalisation(kind).apply(features.read(ROWS)).double().flatten(0, 1)
    expected = torch.from_numpy(np.linalg.eigh((x.T @ x).numpy()).eigenvectors[:, ::-1].copy())
    signs = (statistics.basis * expected).sum(0).sign()
    assert statistics.basis.dtype == torch.float64
    # eps over the gaps between the eigenvalues, which differ by 1e-3 of the largest or more.
    torch.testing.assert_close(statistics.basis * signs, expected, rtol=0, atol=1e-9)


def test_the_mean_is_not_taken_out(tmp_path: Path) -> None:
    shifted = random_features(12, 16, 6) + 40
    write_cache(tmp_path, [shifted])
    first = feature_statistics(Features(tmp_path), range(12), "none").basis[:, 0]
    # 40 stands over the spectrum's 3: the first direction is all ones but for a few percent.
    assert abs(first.sum().item()) / 6**0.5 == pytest.approx(1, abs=1e-2)


def test_only_the_given_rows_count(features: Features) -> None:
    few, all_rows = (feature_statistics(features, rows, "rms").normalisation.scale for rows in ([0, 5], range(24)))
    assert few == pytest.approx(features.read([0, 5]).double().square().mean().sqrt().item(), rel=1e-12)
    assert few != all_rows


def test_pictures_of_zeros_are_refused(tmp_path: Path) -> None:
    write_cache(tmp_path, [torch.zeros(4, 4, 3)])
    with pytest.raises(ValueError, match="features are all zero; cache them again"):
        feature_statistics(Features(tmp_path), range(4), "rms")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["rms", "layernorm", "none"])
def test_features_that_stay_on_the_device_are_those_that_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, kind: str
) -> None:
    write_cache(tmp_path, list(random_features(24, 16, 12).to(dtype).split(8)))
    features, cpu = Features(tmp_path), torch.device("cpu")
    normalisation = feature_statistics(features, ROWS, kind).normalisation
    needed = len(ROWS) * 16 * 12 * dtype.itemsize
    batches = [[5, 1, 22], [3], ROWS, [2, 2]]
    found = {}
    for free in (0, 4 * needed - 1, 4 * needed):  # a GPU's, of which a quarter is taken
        monkeypatch.setattr(preparation, "free_device_memory", lambda device, free=free: free)
        reader = BatchReader(features, ROWS, normalisation, cpu)
        assert reader.is_resident == (free == 4 * needed)
        with monkeypatch.context() as patch:
            if reader.is_resident:
                patch.setattr(Features, "read", None)  # nothing is read any more
            found[free] = [list(reader.read(batches)) for _ in range(2)]
    assert all(
        torch.equal(x, y)
        for epochs in found.values()
        for each, first in zip(epochs, found[0], strict=True)
        for x, y in zip(each, first, strict=True)
    )
    assert found[0][0][1].dtype == torch.float32
