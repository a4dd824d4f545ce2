"""Which tokens are looked at, and what is kept of them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.language_models import FAMILIES, tiny_model, write_tiny_lm
from torch import Tensor

from subspacelab.data.windows import Windows
from subspacelab.linalg.null_space import null_ratio
from subspacelab.models.adaptable import target_linears
from subspacelab.models.block_stream import stream_of
from subspacelab.models.causal_lm import load_causal_lm
from subspacelab.models.hidden_states import HiddenStates
from subspacelab.nullspace.calibration import Batches, Inputs, SharedInput, choose_tokens, collect_block


def windows_of(lengths: list[int], length: int) -> Windows:
    """Random tokens; window i has `lengths[i]` of them, the rest is padding."""
    mask = torch.arange(length)[None] < torch.tensor(lengths)[:, None]
    ids = torch.randint(3, 60, mask.shape, generator=torch.Generator().manual_seed(0))
    return Windows(ids * mask, mask)


def test_tokens_come_evenly_from_all_windows_and_never_from_padding() -> None:
    mask = windows_of([20, 20, 20, 12, 20, 20], 20).attention_mask
    chosen = choose_tokens(mask, 33, seed=1)
    assert not (chosen & ~mask).any()
    assert sorted(chosen.sum(1).tolist()) == [5, 5, 5, 6, 6, 6]
    assert torch.equal(chosen, choose_tokens(mask, 33, seed=1))
    assert not torch.equal(chosen, choose_tokens(mask, 33, seed=2))


def test_a_short_window_gives_what_it_has() -> None:
    chosen = choose_tokens(windows_of([20, 3], 20).attention_mask, 16, seed=0)
    assert chosen.sum(1).tolist() == [8, 3]


def test_the_first_token_is_taken_no_more_often_than_others() -> None:
    mask = torch.ones(40, 25, dtype=torch.bool)
    counts = sum(choose_tokens(mask, 200, seed=s).sum(0) for s in range(20))
    # 4000 draws over 25 places: 160 each, with a deviation of 11.
    assert 110 < int(counts[0]) < 210
    assert int(counts.sum()) == 4000


def test_no_tokens_at_all_are_refused() -> None:
    with pytest.raises(ValueError, match="max_activation_samples"):
        choose_tokens(torch.ones(2, 5, dtype=torch.bool), 0, seed=0)


def collected(model: Any, layers: dict[str, Any], windows: Windows, chosen: Tensor, **wanted: Any) -> dict[str, Inputs]:
    """What is kept of the layers' inputs, by batches of two windows."""
    stream = stream_of(model, layers)
    rows = torch.arange(len(windows.input_ids)).split(2)
    batches = Batches(stream, windows, rows, HiddenStates(torch.device("cpu")))
    batches.embed()
    found: dict[str, Inputs] = {}
    for index in range(len(stream)):
        inputs = [SharedInput((name,), layer.in_features) for name, layer in stream.within(index, layers).items()]
        found |= collect_block(batches, index, inputs, chosen, **wanted)
        batches.states.advance()
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_inputs_are_those_of_each_window_run_alone_and_unpadded(tmp_path: Path, family: str) -> None:
    model = load_causal_lm(write_tiny_lm(tmp_path, family), device=torch.device("cpu"))
    lengths = [12, 7, 12, 1, 9]
    windows = windows_of(lengths, 12)
    chosen = choose_tokens(windows.attention_mask, 18, seed=3)
    name, linear = list(target_linears(model).items())[-1]
    q = torch.eye(linear.in_features, dtype=torch.float64)[:3]
    bases = {name: {name: q, "other": q[:1]}}
    found = collected(model, {name: linear}, windows, chosen, moments=True, bases=bases)[name]
    alone: list[Tensor] = []
    hook = linear.register_forward_pre_hook(lambda _, given: alone.append(given[0].reshape(-1, given[0].shape[-1])))
    with torch.no_grad():
        for ids, length in zip(windows.input_ids, lengths, strict=True):
            model(input_ids=ids[None, :length])
    hook.remove()
    near = {"rtol": 1e-4, "atol": 1e-5}  # float32 attention sums in another order
    sample = torch.cat([x[chosen[i, : len(x)]] for i, x in enumerate(alone)])
    torch.testing.assert_close(found.sample, sample, **near)
    torch.testing.assert_close(found.first, torch.stack([x[0] for x in alone]), **near)
    everything = torch.cat(alone).double()
    assert found.moment is not None
    torch.testing.assert_close(found.moment, everything.T @ everything, rtol=1e-4, atol=1e-4)
    # Both are float64 sums over the same tokens, in another order.
    assert found.ratios == pytest.approx({name: null_ratio(found.moment, q), "other": null_ratio(found.moment, q[:1])})


def test_hooks_are_gone_afterwards_even_when_a_pass_fails() -> None:
    model = tiny_model()
    name, linear = next(iter(target_linears(model).items()))
    windows = windows_of([5, 5], 5)
    bad = Windows(windows.input_ids + 1000, windows.attention_mask)
    with pytest.raises(IndexError):
        collected(model, {name: linear}, bad, windows.attention_mask)
    assert not linear._forward_pre_hooks
