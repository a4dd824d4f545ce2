import pytest
import torch
from safetensors.torch import save_file
from tests.unit.checkpoints.refusal import refusal

from subspacelab.checkpoints import open_source, require_finite
from subspacelab.checkpoints import validation as finite
from subspacelab.core.files import write_json


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


FP8, F32 = torch.float8_e4m3fn, torch.float32
U8, I8, I32 = torch.uint8, torch.int8, torch.int32
SCHEMES = {
    "bnb 4-bit": {"l.weight": U8, "l.weight.absmax": torch.float32, "l.weight.quant_state.bitsandbytes__nf4": U8},
    "bnb int8": {"l.weight": I8, "l.SCB": torch.float32},
    "gptq": {"l.qweight": I32, "l.qzeros": I32, "l.scales": torch.float16, "l.g_idx": I32},
    "fp8 and more": {
        "l.weight": torch.float8_e4m3fn,
        "l.weight_scale": torch.float32,
        "l.weight_scale_2": torch.float32,
    },
    "compressed-tensors": {"l.weight_packed": I32, "l.weight_scale": torch.bfloat16, "l.weight_shape": I32},
}


def write(folder, dtypes, config):
    tensors = {name: torch.zeros(4, 4).to(dtype) for name, dtype in dtypes.items()}
    save_file(tensors | {"norm.weight": torch.ones(4), "l.bias": torch.ones(4)}, folder / "model.safetensors")
    write_json(folder / "config.json", config)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("config", [{}, {"quantization_config": {"quant_method": "mine"}}])
def test_every_tensor_of_a_quantised_layer_is_refused_and_the_others_are_read(tmp_path, scheme, config):
    write(tmp_path, SCHEMES[scheme], config)
    with open_source(tmp_path) as checkpoint:
        for name in SCHEMES[scheme]:
            for access in (checkpoint.require_floating, checkpoint.read, checkpoint.digest):
                message = refusal(access, name)
                assert message.startswith(f"{name}: quantised ({'mine' if config else ''}")
                assert "use the unquantised checkpoint" in message
            refusal(checkpoint.read_rows, name, 0, 1)
        for name in ("norm.weight", "l.bias"):
            checkpoint.require_floating(name)
            assert torch.equal(checkpoint.read(name), torch.ones(4))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.uint8, torch.int8, torch.int32])
def test_codes_without_any_other_sign_are_refused(tmp_path, dtype):
    write(tmp_path, {"l.weight": dtype}, {})
    with open_source(tmp_path) as checkpoint:
        assert "l.weight: quantised" in refusal(checkpoint.require_floating, "l.weight")


def test_a_nested_quantization_config_counts(tmp_path):
    write(tmp_path, {"experts_blocks": U8}, {"text_config": {"quantization_config": {"quant_method": "mxfp4"}}})
    with open_source(tmp_path) as checkpoint:
        assert checkpoint.quantisation("experts_blocks") == "mxfp4"


def test_integer_buffers_are_readable_but_no_weights(tmp_path):
    write(tmp_path, {"position_ids": torch.int64, "l.scales": torch.float32, "l.weight": torch.float64}, {})
    with open_source(tmp_path) as checkpoint:
        assert checkpoint.read("position_ids").dtype == torch.int64
        message = refusal(checkpoint.require_floating, "position_ids")
        assert message.startswith("position_ids: stored as I64, needed one of F64, F32, F16, BF16")
        checkpoint.require_floating("l.scales")  # a learned scale, with no codes beside it
        checkpoint.require_floating("l.weight")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.bool, torch.complex64])
def test_other_numbers_than_plain_floats_are_refused_by_name(dtype):
    with pytest.raises(
        ValueError, match=rf"^w: {str(dtype).removeprefix('torch.')}, needed are floats of 16, 32 or 64"
    ):
        require_finite("w", torch.zeros(2, 2).to(dtype))
