"""Linear layers by oneDNN: the numbers of `nn.Linear`."""

import pytest
import torch
from torch.nn import functional as F

from subspacelab.lowrank.architectures.linear import Linear, linear


def inputs(*shape: int, out: int = 7) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = (shape, (out, shape[-1]), (out,))
    return [torch.randn(*size, generator=generator).requires_grad_() for size in sizes]


def results(function, x, weight, bias, dtype) -> list[torch.Tensor]:
    """The output and the gradients of x, weight and bias."""
    given = [t.detach().to(dtype).requires_grad_() for t in (x, weight, bias)]
    y = function(*given)
    return [y, *torch.autograd.grad(y.square().sum(), given)]


@pytest.mark.parametrize("shape", [(5,), (1, 5), (4, 5), (1025, 5), (3, 1024, 5), (2, 3, 4, 5)])
def test_values_and_gradients_are_those_of_float64(shape):
    given = inputs(*shape)
    for ours, exact in zip(
        results(linear, *given, torch.float32), results(F.linear, *given, torch.float64), strict=True
    ):
        assert ours.shape == exact.shape
        # Float32 rounds each of up to 3,072 summed terms at 6e-8 of the largest sum.
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-5 * exact.abs().max().item())


def test_a_transposed_input_and_a_transposed_weight_are_taken_as_they_lie():
    x, weight, bias = inputs(6, 5)
    torch.testing.assert_close(linear(x.mT.contiguous().mT, weight.T.contiguous().T, bias), F.linear(x, weight, bias))


def test_other_types_and_places_go_to_torch():
    x, weight, bias = inputs(6, 5)
    double = [t.double() for t in (x, weight, bias)]
    assert torch.equal(linear(*double), F.linear(*double))
    meta = [t.to("meta") for t in (x, weight, bias)]
    assert linear(*meta).shape == (6, 7)


def test_without_the_operator_torchs_own_layers_do_the_same(monkeypatch):
    given = inputs(2050, 64, out=32)
    by_operator = linear(*given)
    monkeypatch.setattr("subspacelab.lowrank.architectures.linear._OPERATOR", None)
    assert torch.equal(linear(*given), F.linear(*given))
    torch.testing.assert_close(linear(*given), by_operator)


def test_frozen_inputs_get_no_gradient_and_the_layer_keeps_the_names_of_nn_linear():
    layer, x = Linear(5, 7), torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    layer(x).sum().backward()
    assert list(layer.state_dict()) == ["weight", "bias"]
    torch.testing.assert_close(layer.weight.grad, x.sum(0).expand(7, 5))
    assert x.grad is None


def test_the_same_numbers_twice():
    given = inputs(2050, 64, out=32)
    first, second = (results(linear, *given, torch.float32) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
