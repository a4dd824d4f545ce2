"""FP8 weights are read as the numbers that they stand for, whatever their scale is of."""

import itertools
import math

import pytest
import torch
from safetensors.torch import save_file
from tests.unit.checkpoints.refusal import refusal
from torch import Tensor

from subspacelab.checkpoints import Checkpoint, open_checkpoint, open_source, tensor_digest
from subspacelab.checkpoints.tensors import SIGNIFICANT_BITS
from subspacelab.core.files import write_json

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
W = "model.layers.0.mlp.up_proj.weight"
SCALES = {
    "block": ("_scale_inv", (300, 200), (3, 2)),
    "block, even": ("_scale_inv", (256, 128), (2, 1)),
    "channel": ("_scale", (300, 200), (300, 1)),
    "channel, vector": ("_scale", (300, 200), (300,)),
    "tensor": ("_scale", (300, 200), (1,)),
    "tensor, scalar": ("_scale", (300, 200), ()),
    "group": ("_scale", (300, 200), (300, 2)),
    "experts, block": ("_scale_inv", (3, 300, 200), (3, 3, 2)),
    "experts, tensor": ("_scale", (3, 300, 200), (3,)),
    "experts [in, out], channel": ("_scale", (3, 300, 200), (3, 1, 200)),
}


def made(shape: tuple[int, ...], of: tuple[int, ...], dtype: torch.dtype = E4M3) -> tuple[Tensor, Tensor]:
    """Codes and a scale, by a seed."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator).to(dtype), torch.rand(of, generator=generator) + 0.5


def by_entry(codes: Tensor, scale: Tensor, block: int = 128) -> Tensor:
    """The weights by the definition, one block at a time: an independent reference."""
    weights = codes.double()
    if scale.numel() == 1:
        return weights * scale.double().item()
    scale = scale.reshape(scale.shape + (1,) * (codes.ndim - scale.ndim)).double()
    for at in itertools.product(*map(range, scale.shape)):
        where = []
        for i, size, num in zip(at, codes.shape, scale.shape, strict=True):
            step = size if num == 1 else 1 if num == size else block
            where.append(slice(i * step, (i + 1) * step))
        weights[tuple(where)] *= scale[at]
    return weights


def opened(**tensors: Tensor) -> Checkpoint:
    return open_checkpoint({key.replace("W", W): tensor for key, tensor in tensors.items()})


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@pytest.mark.parametrize("scheme", SCALES)
def test_the_weights_are_code_times_scale(scheme: str, dtype: torch.dtype) -> None:
    suffix, shape, of = SCALES[scheme]
    codes, scale = made(shape, of, dtype)
    checkpoint = opened(**{"W": codes, f"W{suffix}": scale})
    expected, read = by_entry(codes, scale), checkpoint.read(W)
    assert read.dtype == torch.float32
    assert torch.allclose(read.double(), expected, rtol=2**-24, atol=0)
    assert checkpoint.quantisation(W) == "fp8"  # how it is stored, for who builds a model of it
    checkpoint.require_floating(W)
    assert checkpoint.digest(W) == tensor_digest(read)
    last = shape[0]
    for start, stop in (
        ((0, 1), (1, 3), (2, 2)) if len(shape) > 2 else ((0, last), (127, 129), (5, 5), (last - 9, last))
    ):
        assert torch.equal(checkpoint.read_rows(W, start, stop), read[start:stop])


@pytest.mark.parametrize("scale_dtype", [torch.bfloat16, torch.float8_e8m0fnu])
def test_a_file_on_disk_with_the_scale_in_another_shard(tmp_path, scale_dtype: torch.dtype) -> None:  # type: ignore[no-untyped-def]
    codes, scale = made((300, 200), (5, 7))
    scale = scale.to(scale_dtype)
    save_file({W: codes}, tmp_path / "a.safetensors")
    save_file({f"{W}_scale_inv": scale}, tmp_path / "b.safetensors")
    weight_map = {W: "a.safetensors", f"{W}_scale_inv": "b.safetensors"}
    write_json(tmp_path / "model.safetensors.index.json", {"weight_map": weight_map})
    said = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [64, 32]}}
    weights = by_entry(codes.reshape(300, 200), torch.ones(1))
    for i, j in itertools.product(range(5), range(7)):
        weights[64 * i : 64 * (i + 1), 32 * j : 32 * (j + 1)] *= scale[i, j].double()
    for config in (said, {"text_config": said}):
        write_json(tmp_path / "config.json", config)
        with open_source(tmp_path) as checkpoint:
            assert torch.allclose(checkpoint.read(W).double(), weights, rtol=2**-24, atol=0)


def test_blocks_as_compressed_tensors_says_them() -> None:
    codes, scale = made((8, 8), (4, 2))
    tensors = {W: codes, f"{W}_scale": scale}
    groups = {"group_0": {"weights": {"strategy": "block", "block_structure": [2, 4]}}}
    config = {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": groups}}
    checkpoint = open_checkpoint(tensors)
    assert "a scale of shape [4, 2]" in refusal(checkpoint.read, W)
    checkpoint.config |= config
    assert torch.allclose(checkpoint.read(W), codes.float() * scale.repeat_interleave(2, 0).repeat_interleave(4, 1))


@pytest.mark.parametrize("of", [(1, 2), (3, 1), (2, 2), (3, 3), (2, 3), (200,), (200, 1), (1, 300, 1), (0,)])
def test_a_scale_of_another_shape_is_one_line_that_names_both(of: tuple[int, ...]) -> None:
    codes, scale = made((300, 200), of)
    checkpoint = opened(W=codes, W_scale_inv=scale)
    for access in (checkpoint.require_floating, checkpoint.read):
        said = refusal(access, W)
        assert said.startswith(f"{W}_scale_inv: a scale of shape {list(of)} for {W} of shape [300, 200]")
        assert "[3, 2] (blocks of 128 x 128), [300, 1] and [1]" in said


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_factor_that_is_not_finite_is_named(value: float) -> None:
    codes, scale = made((300, 200), (3, 2))
    scale[2, 1] = value
    checkpoint = opened(W=codes, W_scale_inv=scale)
    assert f"{W}_scale_inv: {int(value != value)} NaN" in refusal(checkpoint.read, W)
    checkpoint.read_rows(W, 0, 256)  # the rows of the other factors can be had


def test_without_one_scale_there_is_no_weight() -> None:
    codes, scale = made((4, 4), (4, 1))
    more = ("W_scale_2", "W_zero_point", "W_scale_inv")
    for others in ({}, *({"W_scale": scale, other: scale} for other in more)):
        said = refusal(opened(W=codes, **others).read, W)
        assert said.startswith(f"{W}: quantised (fp8, stored as F8_E4M3 without one scale of its own)")
    assert "without one scale" in refusal(opened(W=codes[0], W_scale=scale[0]).read, W)  # a vector


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.complex64, E4M3])
def test_a_scale_of_another_type_is_one_line(dtype: torch.dtype) -> None:
    checkpoint = opened(W=made((4, 4), (4, 1))[0], W_scale=torch.ones(4, 1).to(dtype))
    assert f"{W}_scale: a scale of type " in refusal(checkpoint.require_floating, W)


def test_the_scales_are_no_weights() -> None:
    codes, scale = made((4, 4), (4, 1))
    checkpoint = opened(W=codes, W_scale=scale, other_scale=scale, ints=torch.ones(4, 4).char(), ints_scale=scale)
    assert [name for name in checkpoint.names if checkpoint.is_scale(name)] == ["ints_scale", f"{W}_scale"]
    assert refusal(checkpoint.read, f"{W}_scale").startswith(f"{W}_scale: quantised")
    assert torch.equal(checkpoint.read("other_scale"), scale)


@pytest.mark.parametrize("groups", [3, [], {"a": 3}, {"a": {"weights": []}}, {"a": {"weights": {}}}])
def test_a_config_that_says_nothing_of_blocks_means_128(groups: object) -> None:
    codes, scale = made((300, 200), (3, 2))
    checkpoint = opened(W=codes, W_scale_inv=scale)
    checkpoint.config["quantization_config"] = {"weight_block_size": None, "config_groups": groups}
    assert torch.allclose(checkpoint.read(W).double(), by_entry(codes, scale), rtol=2**-24, atol=0)


@pytest.mark.parametrize("block", ["128", [128], [128, 0], [True, 1.5], {"a": 1}])
def test_a_block_that_is_none_is_one_line(block: object) -> None:
    checkpoint = opened(**dict(zip(("W", "W_scale_inv"), made((300, 200), (3, 2)), strict=True)))
    checkpoint.config["quantization_config"] = {"weight_block_size": block}
    assert "config.json: a block of FP8 weights is" in refusal(checkpoint.read, W)


@pytest.mark.parametrize(("dtype", "code"), [(E4M3, "F8_E4M3"), (E5M2, "F8_E5M2"), (torch.bfloat16, "BF16")])
def test_the_bits_are_those_of_the_type(dtype: torch.dtype, code: str) -> None:
    assert torch.finfo(dtype).eps == 2.0 ** (1 - SIGNIFICANT_BITS[code])
