import pytest
import torch
from tests.unit.checkpoints.refusal import refusal

from subspacelab.checkpoints import require_finite
from subspacelab.checkpoints import validation as finite


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_counts_over_all_chunks_and_names_the_tensor(monkeypatch, dtype):
    monkeypatch.setattr(finite, "CHUNK_ENTRIES", 10)
    weight = torch.zeros(7, 3, 2, dtype=dtype)
    require_finite("model.w", weight)
    weight[0, 0, 0] = weight[6, 2, 1] = float("nan")
    weight[3, 1] = float("-inf")
    assert refusal(require_finite, "model.w", weight).startswith("model.w: 2 NaN and 2 infinite of 42 entries")


def test_scalars_vectors_empty_and_strided_tensors():
    for good in (torch.tensor(1.0), torch.ones(5), torch.zeros(0, 3), torch.zeros(3, 0), torch.ones(3, 4).T):
        require_finite("w", good)
    assert "w: 0 NaN and 1 infinite of 1" in refusal(require_finite, "w", torch.tensor(float("inf")))
