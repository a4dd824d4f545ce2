"""The stream that is watched is the one that transformers reports, and its last layer is before the final norm."""

import pytest
import torch
from tests.unit.norms.test_family_table import build
from torch import Tensor

from subspacelab.models.residual_stream import blocks_of, run_trunk, watched_stream

FINAL_NORMS = {
    "llama": "model.norm",
    "gemma3_text": "model.norm",
    "gpt2": "transformer.ln_f",
    "gpt_neox": "gpt_neox.final_layer_norm",
    "qwen3_next": "model.norm",
    "mixtral": "model.norm",
}


@pytest.mark.parametrize("family", FINAL_NORMS)
def test_layers_are_those_of_transformers(family: str) -> None:
    model = build(family, {}).eval()
    ids = torch.arange(3, 15).view(2, 6)
    seen: dict[int, Tensor] = {}
    with watched_stream(model, lambda layer, x: seen.update({layer: x.clone()})):
        run_trunk(model, ids, torch.ones_like(ids, dtype=torch.bool))
    with torch.no_grad():
        theirs = model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
        assert sorted(seen) == list(range(len(theirs))) == list(range(len(blocks_of(model)) + 1))
        for layer, expected in enumerate(theirs[:-1]):
            assert torch.equal(seen[layer], expected)
        assert torch.equal(model.get_submodule(FINAL_NORMS[family])(seen[len(theirs) - 1].clone()), theirs[-1])
    run_trunk(model, ids, torch.ones_like(ids, dtype=torch.bool))
    assert len(seen) == len(theirs)  # nothing watches any more


def test_a_stream_of_another_shape_is_refused() -> None:
    model = build("gemma3n_text", {})  # four streams at once
    ids = torch.arange(6)[None]
    said = r"a block passes on \[4, 1, 6, 32\], not one stream"
    with pytest.raises(ValueError, match=said), watched_stream(model, lambda layer, x: None):
        run_trunk(model, ids, torch.ones_like(ids, dtype=torch.bool))
