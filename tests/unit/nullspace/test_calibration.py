"""Second moments of what goes into the layers: the right tokens, each input once, nothing kept."""

from dataclasses import replace

import pytest
import torch
from tests.language_models import FAMILIES, INNER, NUM_INPUTS, VOCABULARY, WIDTH, tiny_model

import subspacelab as sl
from subspacelab.data.windows import Windows
from subspacelab.models.adaptable import target_linears
from subspacelab.models.causal_lm import trunk_of
from subspacelab.nullspace.calibration import Moments, require_enough_tokens, shared_inputs, split_windows


def windows_of(lengths: list[int], longest: int = 16) -> Windows:
    """Random windows of these lengths, padded on the right."""
    ids = torch.randint(3, VOCABULARY, (len(lengths), longest), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    return Windows(ids * mask, mask)


def moments_of(model: torch.nn.Module, windows: Windows, batch_size: int = 4) -> dict[str, Moments]:
    return sl.nullspace.calibrate(model, windows, batch_size=batch_size, allow_few_tokens=True).moments


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_that_read_one_tensor_share_one_moment(family: str) -> None:
    model, windows = tiny_model(family), windows_of([16] * 4)
    inputs = sl.nullspace.calibrate(model, windows, allow_few_tokens=True).inputs
    assert len(inputs) == NUM_INPUTS
    assert sorted(name for shared in inputs for name in shared.modules) == sorted(target_linears(model))
    if family in ("llama", "qwen2"):
        kinds = [[name.rpartition(".")[2] for name in shared.modules] for shared in inputs[:4]]
        assert kinds == [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]
        assert [shared.width for shared in inputs[:4]] == [WIDTH, WIDTH, WIDTH, INNER]
    assert len(moments_of(model, windows)) == NUM_INPUTS


def test_an_input_changed_in_place_is_another_input() -> None:
    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (torch.nn.Linear(3, 3) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first = self.a(x) + self.b(x)
            return first + self.c(x.mul_(2))

    block = Block()
    found = shared_inputs({"a": block.a, "b": block.b, "c": block.c}, lambda: block(torch.ones(1, 2, 3)))
    assert [shared.modules for shared in found] == [("a", "b"), ("c",)]


@pytest.mark.parametrize("family", FAMILIES)
def test_moments_are_those_of_the_activations(family: str) -> None:
    model, windows = tiny_model(family).double(), windows_of([16] * 8)
    found = moments_of(model, windows)
    split = split_windows(windows)
    linears = target_linears(model)
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in linears}
    hooks = [
        linear.register_forward_hook(lambda _, x, __, name=name: seen[name].append(x[0].reshape(-1, x[0].shape[-1])))
        for name, linear in linears.items()
    ]
    with torch.no_grad():
        for row in windows.input_ids:
            model(input_ids=row[None])
    for hook in hooks:
        hook.remove()
    for name, moments in found.items():
        for part in ("first", "second", "held_out"):
            x = torch.cat([seen[name][i] for i in getattr(split, part)])
            # One window at a time against four: products in another order, in float64.
            torch.testing.assert_close(getattr(moments, part), x.T @ x, rtol=1e-12, atol=1e-12)
        assert (moments.num_tokens, moments.num_held_out) == (7 * 16, 16)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_never_enters(family: str) -> None:
    model = tiny_model(family).double()
    lengths = [16, 5, 9, 1, 13, 7, 2, 11]
    padded = windows_of(lengths)
    found = moments_of(model, padded, batch_size=4)
    split = split_windows(padded)
    for part, numbers in (("first", split.first), ("second", split.second), ("held_out", split.held_out)):
        bare: dict[str, torch.Tensor] = {}
        for number in numbers:
            ids = padded.input_ids[number, : lengths[number]].repeat(3, 1)
            alone = moments_of(model, Windows(ids, torch.ones_like(ids, dtype=torch.bool)))
            for name, moments in alone.items():
                bare[name] = bare.get(name, 0) + moments.held_out
        for name, moments in found.items():
            assert moments.num_tokens == sum(lengths[i] for i in split.calibration)
            expected = bare[name]
            # The same float64 sums, apart from the order of products.
            error = (getattr(moments, part) - expected).abs().max() / expected.abs().max()
            assert error < 1e-12


def test_batch_size_does_not_matter() -> None:
    model, windows = tiny_model().double(), windows_of([16] * 9)
    one, five = moments_of(model, windows, 1), moments_of(model, windows, 5)
    for name in one:
        torch.testing.assert_close(one[name].calibration, five[name].calibration, rtol=1e-12, atol=1e-12)


def test_halves_and_held_out_share_no_window() -> None:
    split = split_windows(windows_of([4] * 20))
    assert (len(split.first), len(split.second), len(split.held_out)) == (9, 9, 2)
    assert sorted(split.first + split.second + split.held_out) == list(range(20))
    with pytest.raises(ValueError, match="at least 3 windows .* got 2: give more"):
        split_windows(windows_of([4] * 2))
    with pytest.raises(ValueError, match="at least 3 windows .* the text gives 2: shorten `seq_len`"):
        split_windows(replace(windows_of([4] * 2), shortage="the text has 8 tokens"))


def test_too_few_tokens_are_refused_with_the_numbers() -> None:
    linears = {name: torch.nn.Linear(width, 2) for name, width in (("narrow", 4), ("wide", 7), ("other", 7))}
    enough = windows_of([14] * 4 + [16])  # 56 tokens are calibrated on
    require_enough_tokens(enough, linears)
    few = windows_of([14] * 3 + [13, 16])
    with pytest.raises(
        ValueError, match=r"55 calibration tokens for wide, 7 .* 56 are needed .* \(`calib_loader_size`"
    ):
        require_enough_tokens(few, linears)
    with pytest.raises(ValueError, match="56 are needed .* Give a longer text, or insist"):
        require_enough_tokens(replace(few, shortage="short"), linears)


def test_nan_is_named_by_the_first_layer_it_reaches() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3, 3] = torch.nan
    with pytest.raises(ValueError, match=r"^model\.layers\.0\.mlp\.down_proj: NaN or infinity among its inputs"):
        moments_of(model, windows_of([16] * 4))


def test_layers_that_see_other_tokens_or_none_are_named() -> None:
    model, windows = tiny_model(), windows_of([16] * 4)
    linears = target_linears(model) | {"idle": torch.nn.Linear(2, 2)}
    with pytest.raises(ValueError, match=r"^idle takes no part in a forward pass"):
        shared_inputs(linears, lambda: trunk_of(model)(input_ids=windows.input_ids))
    last = model.model.layers[1].mlp
    lengths: list[int] = []
    last.register_forward_pre_hook(lambda _, x: lengths.append(x[0].shape[1]) or (x[0][:, :1],))
    last.register_forward_hook(lambda _, x, out: out.expand(-1, lengths[-1], -1))
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.gate_proj sees 2 of 32 tokens"):
        moments_of(model, windows)
