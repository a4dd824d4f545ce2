import json
from pathlib import Path
from typing import Literal

import pytest
import torch
from tests.unit.rotation.chains import chain_tensors, decompose_chain
from torch import Tensor

from subspacelab.linalg.svd import svd
from subspacelab.rotation.chain import open_chain
from subspacelab.rotation.weight import Weight, recover_entries, subtract

Q = "model.layers.0.self_attn.q_proj.weight"
UP = "model.layers.0.mlp.up_proj.weight"


def test_all_weights_of_one_model_match(folders: tuple[Path, Path, Path]) -> None:
    chain = open_chain(*folders)
    assert not chain.unmatched
    assert set(chain.names) == set(chain.checkpoints[0].weights)
    assert chain.sources["stage2"] == {"reference": "rl_stage2", "revision": None}


def test_absent_and_reshaped_weights_are_listed(tmp_path: Path) -> None:
    base, stage1, stage2 = chain_tensors()
    del stage1[Q]
    stage2[UP] = stage2[UP][:, :40].contiguous()
    chain = open_chain(*decompose_chain(tmp_path, (base, stage1, stage2)))
    assert chain.unmatched == {Q: "absent in stage1", UP: "shapes differ: [64, 48], [64, 48], [64, 40]"}
    assert not {Q, UP} & set(chain.names)


def test_another_rank_is_listed(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, stage1, _ = decompose_chain(tmp_path, chain_tensors(), rank=8)
    with pytest.raises(ValueError, match=r"share no weight of one shape and rank .*ranks differ: 48, 8, 48") as e:
        open_chain(folders[0], stage1, folders[2])
    assert "\n" not in str(e.value)


def test_a_folder_that_is_none_is_named(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no weights here; expected one of"):
        open_chain(folders[0], tmp_path, folders[2])


def test_folders_of_no_weights_share_none(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text(json.dumps({"weights": {}, "skipped": {}, "source": {}}))
    with pytest.raises(ValueError, match="share no weight"):
        open_chain(tmp_path, tmp_path, tmp_path)


CODES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.float64: "F64"}


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


def had_back(w: Tensor, method: Literal["gram", "lapack"] = "gram") -> Weight:
    factors = svd(w, method=method)
    return Weight(factors, recover_entries(factors, CODES[w.dtype]))


def matrix(kind: str) -> Tensor:
    """Entries of very different sizes, as weights have them, and harder ones."""
    generator = torch.Generator().manual_seed(3)
    w = 0.02 * torch.randn(160, 96, generator=generator)
    if kind == "half_zero":
        w[torch.rand(w.shape, generator=generator) < 0.5] = 0
    elif kind == "outliers":
        w[:, 3] *= 1000
        w[:5] *= 300
    elif kind == "zero_rows":
        w[100:] = 0
    elif kind == "rows_over_6_decades":
        w *= torch.logspace(0, -6, len(w))[:, None]
    elif kind == "rank_3":
        w = w[:, :3] @ w[:3]
    elif kind == "constant":
        w[:] = 1
    return w


KINDS = ["plain", "half_zero", "outliers", "zero_rows", "rows_over_6_decades", "rank_3", "constant"]


@pytest.mark.parametrize("kind", KINDS)
def test_no_difference_of_types_or_methods_is_an_update(kind: str) -> None:
    w = matrix(kind).to(torch.bfloat16)
    stored = [
        had_back(w.to(dtype), method) for dtype in CODES if dtype != torch.float16 for method in ("gram", "lapack")
    ]
    for other in stored[1:]:
        assert not subtract(other, stored[0]).any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", CODES)
def test_the_planted_share_of_unchanged_entries_comes_back(kind: str, dtype: torch.dtype) -> None:
    w = matrix(kind).to(dtype)
    moved = torch.rand(w.shape, generator=torch.Generator().manual_seed(4)) < 0.005
    # One step of bf16 and fp16; float32 factors do not show one of float32, but 1e-4 of an entry.
    step = max(torch.finfo(dtype).eps, 1e-4)
    b = torch.where(moved, (w.double() * (1 + step) + (w == 0) * 1e-3).to(dtype), w)
    update = subtract(had_back(b), had_back(w))
    truth = (b == w).double().mean().item()
    # The rare entry near 0 whose step is below what the factors tell.
    assert (update == 0).double().mean().item() == pytest.approx(truth, abs=3e-4)
    exact = (b.double() - w.double()).norm()
    assert (update.double() - (b.double() - w.double())).norm() <= 0.01 * exact
