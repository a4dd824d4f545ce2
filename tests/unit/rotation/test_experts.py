"""Experts as real families store them: a matrix [out, in] each, in decompose and in compare from weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from subspacelab.checkpoints import Checkpoint, open_checkpoint, open_source
from subspacelab.rotation.comparison import compare
from subspacelab.rotation.decomposition import decompose
from subspacelab.rotation.experts import find_fused
from subspacelab.rotation.plan import Selection, make_plan

HIDDEN, INNER, EXPERTS, LAYERS = 32, 24, 4, 2
COMMON = {"vocab_size": 64, "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": 4}
COMMON |= {"num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0}
FAMILIES: dict[str, dict[str, Any]] = {
    "Mixtral": {"intermediate_size": INNER, "num_local_experts": EXPERTS},
    "Qwen3Moe": {"moe_intermediate_size": INNER, "num_experts": EXPERTS, "num_experts_per_tok": 2, "head_dim": 8},
    "DeepseekV3": {"moe_intermediate_size": INNER, "n_routed_experts": EXPERTS, "n_group": 2, "topk_group": 1}
    | {"num_experts_per_tok": 2, "first_k_dense_replace": 0, "q_lora_rank": 16, "kv_lora_rank": 16}
    | {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "num_key_value_heads": 4},
    "Llama4": {"intermediate_size": INNER, "num_local_experts": EXPERTS, "interleave_moe_layer_step": 1, "head_dim": 8},
    "GptOss": {"intermediate_size": INNER, "num_local_experts": EXPERTS, "head_dim": 8, "num_experts_per_tok": 2}
    | {"layer_types": ["full_attention"] * LAYERS},
    "GraniteMoe": {"intermediate_size": INNER, "num_local_experts": EXPERTS},
}
FUSED = {"Llama4": "experts.gate_up_proj", "GptOss": "experts.gate_up_proj", "GraniteMoe": "input_linear.weight"}
"""Those that transformers saves fused, and a part of one of their names."""


def built(family: str) -> nn.Module:
    import transformers

    config = "Llama4TextConfig" if family == "Llama4" else f"{family}Config"
    torch.manual_seed(0)
    made = getattr(transformers, config)(**COMMON | FAMILIES[family])
    return getattr(transformers, f"{family}ForCausalLM")(made).to(torch.bfloat16)  # type: ignore[no-any-return]


def experts_of(model: nn.Module, family: str) -> dict[tuple[int, int], list[Tensor]]:
    """[out, in] of every expert, by (layer, expert), from the parameters that the model computes with."""
    stored_in_out = family in ("Llama4", "GptOss")
    found: dict[tuple[int, int], list[Tensor]] = {}
    for key, w in model.state_dict().items():
        if w.ndim == 3:
            for e, expert in enumerate(w):
                found.setdefault((int(key.split(".")[2]), e), []).append(expert.T if stored_in_out else expert)
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_each_expert_is_the_matrix_that_the_model_multiplies_by(family: str, tmp_path: Path) -> None:
    model = built(family)
    model.save_pretrained(tmp_path / "a")  # type: ignore[operator]
    result = decompose(tmp_path / "a", include="expert|_linear", device="cpu")
    expected = experts_of(model, family)
    assert len(expected) == LAYERS * EXPERTS
    given = []
    for name, svd in result:
        if "shared" in name:
            continue
        product = ((svd.U.double() * svd.S.double()) @ svd.Vh.double()).bfloat16()
        layer = int(name.split(".")[2])
        e = int(name.rpartition("[")[2][:-1] if family in FUSED else name.partition("experts.")[2].partition(".")[0])
        assert any(w.shape == product.shape and torch.equal(product, w) for w in halves(expected[layer, e], family))
        given.append(product.numel())
    assert sum(given) == sum(w.numel() for ws in expected.values() for w in ws)  # none is missing, none is there twice
    assert not result.notes


def halves(weights: list[Tensor], family: str) -> list[Tensor]:
    """Those of a model, where gate and up are one, as they are stored, where they may be two."""
    return weights if family in FUSED else [half for w in weights for half in ((w,), w.chunk(2))[w.shape[0] > HIDDEN]]


@pytest.mark.parametrize("family", ["Qwen3Moe", "Llama4", "GptOss"])
def test_compare_from_weights_has_a_row_per_expert_and_means_per_layer(family: str, tmp_path: Path) -> None:
    model = built(family)
    model.save_pretrained(tmp_path / "a")  # type: ignore[operator]
    with torch.no_grad():
        for w in model.parameters():
            w.mul_(1 + 2**-5 * torch.randn(w.shape, generator=torch.Generator().manual_seed(1)))
    model.save_pretrained(tmp_path / "b")  # type: ignore[operator]
    found = compare(tmp_path / "a", tmp_path / "b", include="experts", exclude="shared", null_draws=0, device="cpu")
    decomposed = [decompose(tmp_path / c, include="experts", exclude="shared", device="cpu") for c in "ab"]
    assert set(found.layers["weight"]) == set(decomposed[0].weights)
    for row in found.layers.itertuples():
        down = "down_proj" in row.weight
        assert (row.m, row.n) == ((HIDDEN, INNER) if down else (INNER * (1 + (family in FUSED)), HIDDEN))
        a, b = (d.read(row.weight).S.double() for d in decomposed)
        assert row.nss == pytest.approx(((a - b).norm() / a.norm()).item(), rel=1e-4)
    assert set(found.modules["num_weights"]) == {LAYERS * EXPERTS}
    means = found.layers.groupby(["module", "layer"])["nss"].mean()
    curves = found.curves.set_index([found.curves.columns[0], "layer"])["nss"]
    assert len(curves) == LAYERS * len(found.modules)
    assert curves.to_numpy() == pytest.approx(means.reindex(curves.index).to_numpy(), rel=1e-9)


def checkpoint(shapes: dict[str, tuple[int, ...]], **config: object) -> Checkpoint:
    opened = open_checkpoint({name: torch.ones(shape) for name, shape in shapes.items()})
    opened.config |= config
    return opened


UP, DOWN = (f"model.layers.{{}}.mlp.experts.{part}" for part in ("gate_up_proj", "down_proj"))


@pytest.mark.parametrize("in_out", [True, False])
@pytest.mark.parametrize("config", [{}, {"hidden_size": 8}, {"text_config": {"hidden_size": 8}, "hidden_size": 6}])
@pytest.mark.parametrize("inner", [3, 4, 8, 16])  # 4: gate_up_proj is square; 8: down_proj
def test_names_and_sizes_tell_the_orientation(in_out: bool, config: dict[str, object], inner: int) -> None:
    up, down = (2 * inner, 8), (8, inner)
    if in_out:
        up, down = up[::-1], down[::-1]
    shapes = {
        f"model.layers.{i}.mlp.experts.{part}": (5, *s)
        for i in (0, 1)
        for part, s in zip(("gate_up_proj", "down_proj"), (up, down), strict=True)
    }
    fused = find_fused(checkpoint(shapes, **config))
    assert {f.transposed for f in fused.values()} == {in_out}
    assert {f.shape for f in fused.values()} == {(2 * inner, 8), (8, inner)}


def test_what_nothing_tells_is_taken_as_stored_and_said() -> None:
    for shapes, config in (
        ({"experts.down_proj": (2, 4, 6)}, {}),
        ({"experts.down_proj": (2, 4, 6)}, {"hidden_size": 5}),
        ({"experts.gate_proj": (2, 4, 4), "experts.down_proj": (2, 4, 4)}, {"hidden_size": 4}),
        ({"experts.mystery": (2, 4, 6)}, {"hidden_size": 4}),
    ):
        plan = make_plan(checkpoint(shapes, **config), rank=None, selection=Selection.of(None, None))
        assert {part.shape for part in plan.parts.values()} == {shape[1:] for shape in shapes.values()}
        assert plan.notes == (
            f"of {2 * len(shapes)} fused experts, such as {min(shapes)}[0], neither names nor sizes tell whether they "
            "are [out, in] or [in, out]: taken as they are stored, as [out, in]",
        )
    found = decompose({"experts.mystery": torch.eye(3).expand(2, 3, 3).contiguous()}, device="cpu")
    assert found.notes == plan.notes


def test_of_dbrx_one_projection_is_the_other_way_round(tmp_path: Path) -> None:
    keys = {part: f"transformer.blocks.0.ffn.experts.mlp.{part}" for part in ("w1", "w2")}
    weights = {key: torch.randn(3 * 5, 4, generator=torch.Generator().manual_seed(0)) for key in keys.values()}
    config = {"d_model": 4, "ffn_config": {"moe_num_experts": 3}}
    opened = open_checkpoint(weights)
    opened.config |= config
    plan = make_plan(opened, rank=None, selection=Selection.of(None, None))
    for part, turned in (("w1", False), ("w2", True)):
        w = weights[keys[part]].reshape(3, 5, 4)[1]
        assert torch.equal(plan.parts[f"{keys[part]}[1]"].read(opened), w.T if turned else w)


def test_a_folder_with_experts_is_kept_by_a_second_run(tmp_path: Path) -> None:
    """Turned experts among the weights that a later selection leaves out."""
    tensors = {
        UP.format(0): torch.randn(2, 8, 6),
        DOWN.format(0): torch.randn(2, 3, 8),
        "model.norm_proj.weight": torch.eye(3),
    }
    model = tmp_path / "model"
    model.mkdir()
    torch.save(tensors, model / "pytorch_model.bin")
    (model / "config.json").write_text(json.dumps({"hidden_size": 8}))
    first = decompose(model, include="gate_up", output_dir=tmp_path / "out", device="cpu")
    assert {record.matrix_shape for record in first.weights.values()} == {(6, 8)}
    times = {path.name: path.stat().st_mtime_ns for path in first.folder.glob("*gate_up*")}
    second = decompose(model, exclude="gate_up", output_dir=tmp_path / "out", device="cpu")
    assert set(first.weights) < set(second.weights)
    assert {path.name: path.stat().st_mtime_ns for path in first.folder.glob("*gate_up*")} == times
    with open_source(model) as opened:
        assert find_fused(opened)[DOWN.format(0)].shape == (8, 3)
