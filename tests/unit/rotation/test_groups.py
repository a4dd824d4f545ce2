import pytest
from tests.tiny import tiny_qwen_vl_shapes

from subspacelab.rotation.groups import default_groups, find_weights, layer_index, make_groups

NAMES = sorted(name for name, shape in tiny_qwen_vl_shapes().items() if len(shape) >= 2)
Q = "model.layers.{}.self_attn.q_proj.weight"


def test_default_groups_cover_every_weight_once() -> None:
    groups = make_groups(NAMES)
    assert sorted(name for group in groups for name in group.members) == NAMES
    assert [group.label for group in groups] == [
        *(f"vision {part}" for part in ("QKV", "proj", "gate", "up", "down")),
        *(f"language {part}" for part in ("Q", "K", "V", "O", "gate", "up", "down")),
        *("patch embedding", "merger", "token embedding"),
    ]


def test_ranges_follow_the_real_depth() -> None:
    groups = {group.label: group for group in make_groups(NAMES)}
    assert groups["language Q"].members == {Q.format(0): 0, Q.format(1): 1}
    assert groups["language Q"].is_curve
    assert not groups["merger"].is_curve


def test_an_unknown_pattern_gets_a_label_of_its_own_name() -> None:
    names = ["encoder.layer.0.attention.query.weight", "encoder.layer.1.attention.query.weight", "pooler.weight"]
    assert default_groups(names) == {
        "encoder.layer.attention.query": "encoder.layer.{}.attention.query.weight",
        "pooler": "pooler.weight",
    }


def test_experts_of_a_layer_are_one_group() -> None:
    names = [f"model.layers.{i}.mlp.experts.{e}.up_proj.weight" for i in range(2) for e in range(3)]
    (group,) = make_groups(names)
    assert list(group.members.values()) == [0, 0, 0, 1, 1, 1]


def test_experts_of_one_tensor_are_one_group_with_their_layer() -> None:
    names = [f"model.layers.{i}.mlp.experts.gate_up_proj[{e}]" for i in range(2) for e in range(11)]
    (group,) = make_groups(names)
    assert group.label == "model.layers.mlp.experts.gate_up_proj"
    assert [layer for _, layer in sorted(group.members.items())] == [0] * 11 + [1] * 11
    stem = "model.layers.{}.mlp.experts.gate_up_proj"
    assert find_weights(stem, names) == find_weights(stem + "[{}]", names) == group.members
    assert find_weights(stem + "[{1-2}]", names) == {f"{stem.format(i)}[{e}]": i for i in range(2) for e in (1, 2)}
    assert find_weights(stem.format(1) + "[{}]", names) == {f"{stem.format(1)}[{e}]": None for e in range(11)}


def test_numbers_that_are_no_layers_stay_literal() -> None:
    assert layer_index("visual.merger.mlp.2.weight") is None
    assert layer_index("visual.blocks.17.attn.qkv.weight") == 17
    assert layer_index("model.embed_tokens.weight") is None


@pytest.mark.parametrize(
    ("pattern", "layers"),
    [
        (Q, [0, 1]),
        (Q.removesuffix(".weight"), [0, 1]),
        ("model.layers.{1-9}.self_attn.q_proj.weight", [1]),
        ("model.layers.{0-0}.self_attn.q_proj.weight", [0]),
        ("model.layers.1.self_attn.q_proj.weight", [None]),
        ("model.language_model.layers.{}.self_attn.q_proj.weight", [0, 1]),
        (" model.visual.blocks.0.attn.qkv ", [None]),
    ],
)
def test_patterns_find_what_they_say(pattern: str, layers: list[int | None]) -> None:
    assert list(find_weights(pattern, NAMES).values()) == layers


@pytest.mark.parametrize("pattern", ["model.layers.{a}.x", "model.layers.{0,3}.x", "{"])
def test_other_braces_are_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="braces hold nothing or a range") as e:
        find_weights(pattern, NAMES)
    assert "\n" not in str(e.value)


def test_dots_are_literal() -> None:
    with pytest.raises(ValueError, match="matches no weight"):
        find_weights("modelxlayersx{}xself_attnxq_projxweight", NAMES)


def test_modules_add_groups_and_name_what_they_cannot_find() -> None:
    block = "visual.blocks.0.attn.qkv,visual.blocks.0.mlp.up_proj"
    added = make_groups(NAMES, {"vision block 0": block})[-1]
    assert added.label == "vision block 0"
    assert len(added.members) == 2
    with pytest.raises(ValueError, match=r"module 'x': pattern 'nothing' matches no weight") as e:
        make_groups(NAMES, {"x": "nothing"})
    assert "\n" not in str(e.value)


def test_a_label_of_a_default_group_replaces_it() -> None:
    groups = {group.label: group for group in make_groups(NAMES, {"language Q": Q.format(1)})}
    assert list(groups["language Q"].members) == [Q.format(1)]


def test_signs_of_patterns_within_names_are_letters_like_any_other() -> None:
    names = [r"$\frac{$", "{}", "{0-1}.weight", "a,b", " edge ", "h.3.{x}", "[/x]"]
    found = {name: layer for group in make_groups(names) for name, layer in group.members.items()}
    assert found == dict.fromkeys(names) | {"h.3.{x}": 3}
