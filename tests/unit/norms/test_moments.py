import numpy as np
import pytest
import torch

from subspacelab.norms.moments import measure_vectors, merge, moments

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# Sums of 7,000 float64 terms of size 1, in whatever order, agree to some 1e-13.
TOLERANCE = 1e-12


def table(dtype: torch.dtype = torch.float64, rows: int = 100, width: int = 70) -> torch.Tensor:
    return (torch.randn(rows, width, generator=torch.Generator().manual_seed(3), dtype=torch.float64) + 0.2).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_moments_are_numpys_in_float64(dtype: torch.dtype) -> None:
    x = table(dtype)
    a, found = x.double().numpy(), moments(x)
    expected = [a.mean(), np.abs(a).mean(), a.std(), a.min(), a.max()]
    assert [found.mean, found.abs_mean, found.std, found.min, found.max] == pytest.approx(expected, rel=TOLERANCE)
    assert found.count == a.size


def test_a_single_number_has_no_deviation_and_none_is_refused() -> None:
    one = moments(torch.tensor([-2.5]))
    assert (one.mean, one.abs_mean, one.std, one.min, one.max, one.count) == (-2.5, 2.5, 0.0, -2.5, -2.5, 1)
    with pytest.raises(ValueError, match="no entries"):
        moments(torch.empty(0, 4))


@pytest.mark.parametrize("cut", [1, 33, 99])
def test_two_parts_merge_to_the_whole(cut: int) -> None:
    x = table()
    whole, merged = moments(x), merge(moments(x[:cut]), moments(x[cut:]))
    assert merged.count == whole.count
    assert (merged.mean, merged.abs_mean, merged.std) == pytest.approx(
        (whole.mean, whole.abs_mean, whole.std), rel=TOLERANCE
    )
    assert (merged.min, merged.max) == (whole.min, whole.max)


@pytest.mark.parametrize("rows", [1, 7, 100])
@pytest.mark.parametrize("dtype", DTYPES)
def test_chunks_of_rows_are_the_whole(rows: int, dtype: torch.dtype) -> None:
    x = table(dtype)
    found, a = measure_vectors(x.split(rows), 100), x.double().numpy()
    np.testing.assert_allclose(found.norms.numpy(), np.linalg.norm(a, axis=1), rtol=TOLERANCE)
    assert (found.weights.mean, found.weights.abs_mean, found.weights.std) == pytest.approx(
        (a.mean(), np.abs(a).mean(), a.std()), rel=TOLERANCE
    )


def test_a_deviation_far_smaller_than_the_mean_survives_the_chunks() -> None:
    # sqrt(mean(x^2) - mean(x)^2) would leave nothing of 1e-6 beside 1e4; 1e4 itself is held to 2e-12.
    x = 1e4 + 1e-6 * table()
    found = measure_vectors(x.split(9), 100).weights.std
    assert found == pytest.approx(float(x.numpy().std()), rel=1e-5)


def test_norms_of_numbers_at_the_edge_of_bf16_do_not_overflow() -> None:
    x = torch.full((2, 4), 3e38, dtype=torch.bfloat16)
    assert measure_vectors([x], 2).norms.tolist() == pytest.approx([2 * float(x[0, 0])] * 2)


def test_no_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match="no vectors"):
        measure_vectors([], 0)
