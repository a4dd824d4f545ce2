import pytest
import torch

from subspacelab.linalg.svd import svd
from subspacelab.rotation.weights import recover_entries


@pytest.mark.parametrize("shape", [(96, 40), (40, 96)])
@pytest.mark.parametrize(("code", "dtype"), [("BF16", torch.bfloat16), ("F16", torch.float16)])
def test_stored_entries_come_back(shape: tuple[int, int], code: str, dtype: torch.dtype) -> None:
    w = (0.02 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).to(dtype)
    got = recover_entries(svd(w), code)
    assert got.dtype == dtype
    lost = got != w
    assert lost.float().mean() <= 1e-3
    # Only entries whose own rounding step is below the 1e-8 of the factors can be lost.
    step = torch.finfo(dtype).eps * w[lost].abs().float()
    assert (step < 1e-6 * w.float().abs().mean()).all()


def test_float32_entries_come_back_but_for_rounding() -> None:
    w = torch.randn(64, 48, generator=torch.Generator().manual_seed(1))
    got = recover_entries(svd(w), "F32")
    assert (got - w).norm() / w.norm() < 2e-7  # float32 rounding of U, S and Vh
