"""Statistics files made by hand: what a verification of four layers might say."""

from dataclasses import replace
from typing import Any

from subspacelab.nullspace.results import LayerStats, Sample, Summary, Verification, reading

LAYERS = ("model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj", "model.layers.1.self_attn.q_proj")


def layer_of(name: str, **changes: Any) -> LayerStats:
    """A trained layer of lora_null_v2 as it should be."""
    plain = LayerStats(
        layer=name,
        samples=100,
        in_features=64,
        rank=16,
        out_features=32,
        X_norm=10.0,
        BX_norm=0.4,
        ABX_norm=0.2,
        ResidualX_norm=5.0,
        FullOutput_norm=5.1,
        BX_ratio=0.04,
        ABX_ratio=0.02,
        adapter_contribution=0.2 / 5.1,
        B_weight_norm=4.0,
        A_weight_norm=1.5,
        Residual_weight_norm=8.0,
        B_orthonormal=True,
        BX_ratio_bos=0.08,
        BX_ratio_rest=0.039,
        BX_ratio_mean_norms=0.041,
        BX_ratio_median=0.039,
        BX_ratio_random=0.5,
        BX_ratio_optimum=0.03,
        tokens_per_dimension=32.0,
        DeltaX_ratio=0.02,
        base_BX_ratio=0.038,
        base_DeltaX_ratio=0.019,
        bound_left=0.02,
        bound=0.06,
        base_bound_left=0.019,
        base_bound=0.055,
    )
    return replace(plain, **changes)


def summary_of(**changes: Any) -> Summary:
    """The summary of such layers."""
    plain = Summary(
        method="lora_null_v2",
        trained=True,
        down_frozen=True,
        starts_at_zero=True,
        sample=Sample(seed=233, calib_loader_size=16, seq_len=128, max_activation_samples=100, note=""),
        num_tokens=2048,
        BX_ratio=0.04,
        BX_ratio_bos=0.08,
        BX_ratio_rest=0.039,
        ABX_ratio=0.02,
        adapter_contribution=0.2 / 5.1,
        BX_ratio_random=0.5,
        BX_ratio_optimum=0.03,
        base_BX_ratio=0.038,
        DeltaX_ratio=0.02,
        A_weight_norm=2.6,
        B_weight_norm=6.9,
    )
    return replace(plain, **changes)


def trained_of(summary: dict[str, Any] | None = None, **layers: Any) -> Verification:
    """A trained adapter; `layers` change every layer, `summary` the summary."""
    found = summary_of(**(summary or {}))
    stats = tuple(layer_of(name, **layers) for name in LAYERS)
    return Verification("out/ft", "text.txt", len(stats), stats, found, reading(found))


def init_of(summary: dict[str, Any] | None = None, **layers: Any) -> Verification:
    """The same adapter as it was built."""
    zero = {"ABX_ratio": 0.0, "DeltaX_ratio": 0.0, "A_weight_norm": 0.0, "adapter_contribution": 0.0}
    still = {"ABX_norm": 0.0, "base_DeltaX_ratio": 0.0, "bound": 0.0, "bound_left": 0.0}
    same = {"BX_ratio": 0.038}
    return trained_of(zero | same | {"trained": False} | (summary or {}), **(zero | same | still | layers))
