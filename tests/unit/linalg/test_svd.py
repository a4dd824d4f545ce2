"""The decomposition, exact and orthonormal for every kind of matrix a checkpoint can hold, and its two errors."""

from dataclasses import replace

import pytest
import torch
from tests.unit.linalg.matrices import gaussian, planted

from subspacelab.linalg.svd import orthogonality_error, reconstruction_error, svd

ROUNDING = 1e-7  # factors are float32: 6e-8 per entry; LAPACK in float32 leaves 2e-6

decades = torch.logspace(0, -10, 120, dtype=torch.float64)
MATRICES = {
    "tall": gaussian(300, 100),
    "wide": gaussian(100, 300),
    "square": gaussian(150, 150),
    "several_blocks": gaussian(700, 600),
    "one_row": gaussian(1, 50),
    "one_column": gaussian(50, 1),
    "zero": torch.zeros(200, 100, dtype=torch.float64),
    "rank_1": planted(300, 200, torch.ones(1)),
    "rank_5_square": planted(200, 200, torch.tensor([5.0, 4, 3, 2, 1])),
    "repeated": planted(200, 100, torch.ones(100)),
    "two_levels": planted(200, 100, torch.cat([torch.ones(50), torch.full((50,), 0.5)])),
    "condition_1e10_tall": planted(300, 120, decades),
    "condition_1e10_wide": planted(120, 300, decades),
    "condition_1e10_square": planted(120, 120, decades),
    "one_weak_direction": planted(200, 200, torch.cat([torch.ones(199), torch.tensor([1e-12])])),
    "zero_column": torch.cat([gaussian(150, 99), torch.zeros(150, 1)], dim=1),
    "twin_columns": gaussian(200, 50).repeat(1, 2),
    "tiny_scale": 1e-30 * gaussian(200, 100),
}


@pytest.mark.parametrize("method", ["auto", "gram", "lapack"])
@pytest.mark.parametrize("name", MATRICES)
def test_orthonormal_and_exact(name, method):
    w = MATRICES[name]
    result = svd(w, method=method)
    assert result.method == method or method == "auto"
    assert reconstruction_error(w, result) < ROUNDING
    assert orthogonality_error(result) < ROUNDING
    assert (result.S.diff() <= 0).all()
    exact = torch.linalg.svdvals(w)
    # Float32 rounding of each value, and eps64 of the largest for the weakest.
    torch.testing.assert_close(result.S.double(), exact, rtol=1e-6, atol=1e-14 * max(exact[0].item(), 1e-300))


@pytest.mark.parametrize("method", ["gram", "lapack"])
def test_planted_factors_come_back(method):
    s = torch.linspace(2, 1, 40, dtype=torch.float64)
    w = planted(90, 60, s)
    result = svd(w, method=method, rank=40)
    # U from the planted product itself: W V / s; gaps of 1/40 keep each vector determined to float32 rounding.
    u = w @ result.Vh.T.double() / s
    torch.testing.assert_close(result.S.double(), s, rtol=1e-7, atol=0)
    torch.testing.assert_close(result.U.double(), u, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(257, 96), (96, 257)])
def test_every_floating_dtype(dtype, shape):
    w = gaussian(*shape).to(dtype)
    result = svd(w)
    assert (result.U.dtype, result.S.dtype, result.Vh.dtype) == (torch.float32,) * 3
    assert (result.U.shape, result.Vh.shape) == ((shape[0], 96), (96, shape[1]))
    assert result.U.is_contiguous()
    assert result.Vh.is_contiguous()
    assert reconstruction_error(w, result) < ROUNDING
    assert orthogonality_error(result) < ROUNDING


def test_memory_order_of_the_input_does_not_matter():
    w = gaussian(200, 90)
    strided = torch.stack([w, w], dim=2)[:, :, 0]
    for other in (strided, w.T.contiguous().T):
        result = svd(other)
        assert reconstruction_error(w, result) < ROUNDING
        torch.testing.assert_close(result.U, svd(w).U, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(300, 100), (100, 300), (130, 130)])
@pytest.mark.parametrize("method", ["gram", "lapack"])
def test_rank_keeps_the_leading_directions(shape, method):
    w = gaussian(*shape)
    full, cut = svd(w, method=method), svd(w, method=method, rank=7)
    assert (cut.U.shape, cut.S.shape, cut.Vh.shape) == ((shape[0], 7), (7,), (7, shape[1]))
    # The same float64 numbers rounded once, products of another width apart.
    torch.testing.assert_close(cut.U, full.U[:, :7], rtol=0, atol=1e-6)
    torch.testing.assert_close(cut.Vh, full.Vh[:7], rtol=0, atol=1e-6)
    # Eckart-Young: what is missing is the rest of the spectrum.
    missing = full.S[7:].double().norm() / full.S.double().norm()
    assert reconstruction_error(w, cut) == pytest.approx(missing.item(), rel=1e-6)


@pytest.mark.parametrize("method", ["gram", "lapack"])
@pytest.mark.parametrize("shape", [(200, 80), (80, 200)])
def test_signs_and_bits_are_fixed(shape, method):
    w = gaussian(*shape)
    first, again = svd(w, method=method), svd(w.clone(), method=method)
    assert all(torch.equal(getattr(first, f), getattr(again, f)) for f in ("U", "S", "Vh"))
    largest = first.U.gather(0, first.U.abs().argmax(dim=0, keepdim=True))
    assert (largest > 0).all()


def test_first_of_two_equal_magnitudes_decides_the_sign():
    w = torch.outer(torch.tensor([-0.5, 0.5, 0.5, -0.5]), torch.tensor([3.0, 4.0]))
    u = svd(w).U[:, 0]
    assert u.sign().tolist() == [1, -1, -1, 1]


def test_auto_says_what_it_chose():
    assert svd(gaussian(300, 40)).method == "lapack"
    assert svd(gaussian(300, 100)).method == "gram"
    assert svd(MATRICES["rank_1"]).method == "lapack"
    assert svd(MATRICES["one_weak_direction"]).method == "gram"


def test_mirsky_and_weyl():
    for seed in range(20):
        a, d = gaussian(90, 70, seed), 0.1 * gaussian(90, 70, 100 + seed)
        shift = svd(a + d).S.double() - svd(a).S.double()
        assert shift.norm() <= torch.linalg.matrix_norm(d) * (1 + 1e-6)
        assert shift.abs().max() <= torch.linalg.matrix_norm(d, 2) * (1 + 1e-6)


@pytest.mark.parametrize(
    ("w", "options", "words"),
    [
        (torch.zeros(3), {}, "[3]"),
        (torch.zeros(0, 3), {}, "[0, 3]"),
        (torch.zeros(3, 3, dtype=torch.int8), {}, "int8"),
        (torch.zeros(5, 3), {"rank": 4}, "rank 4 of a 5 x 3 matrix: choose 1 <= rank <= 3"),
        (torch.zeros(5, 3), {"rank": 0}, "rank 0"),
        (torch.zeros(5, 3), {"method": "magic"}, "auto, gram, lapack"),
        (torch.full((5, 3), torch.nan), {}, "NaN or Inf"),
        (torch.full((300, 100), torch.inf), {}, "NaN or Inf"),
    ],
)
def test_mistakes_are_named_in_one_line(w, options, words):
    # Past the shape checks of the test run, as a user without them would call it.
    with pytest.raises(ValueError, match="(?s).+") as caught:
        getattr(svd, "__wrapped__", svd)(w, **options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", MATRICES)
def test_cuda(name):
    w = MATRICES[name]
    result = svd(w, device="cuda")
    assert result.U.device.type == "cuda"
    assert reconstruction_error(w, result) < ROUNDING
    assert orthogonality_error(result) < ROUNDING


@pytest.mark.parametrize("shape", [(120, 80), (80, 120)])
def test_a_planted_error_is_measured(shape):
    w = gaussian(*shape)
    good = svd(w)
    damaged = replace(good, S=good.S * 1.25)
    # U diag(S) Vh grows by 1/4, so a quarter of W is wrong; factors are float32.
    assert reconstruction_error(w, damaged) == pytest.approx(0.25, rel=1e-6)
    tilted = replace(good, U=good.U * 1.5)
    assert orthogonality_error(tilted) == pytest.approx(1.25, rel=1e-6)
    assert orthogonality_error(replace(good, Vh=good.Vh * 1.5)) == pytest.approx(1.25, rel=1e-6)


def test_measuring_changes_nothing():
    w = gaussian(120, 80)
    before = w.clone()
    reconstruction_error(w, svd(w))
    assert torch.equal(w, before)


def test_zero_matrix_has_no_error():
    w = torch.zeros(30, 20)
    assert reconstruction_error(w, svd(w)) == 0
