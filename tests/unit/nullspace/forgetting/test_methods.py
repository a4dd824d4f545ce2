"""Each rival on a tiny model: it starts as the base, trains what it says, and moves nothing else."""

from typing import Any

import pytest
import torch
from tests.language_models import INNER, WIDTH, write_text, write_tiny_lm

from subspacelab.checkpoints import resolve_reference
from subspacelab.models.trainables import Base, Trainable
from subspacelab.nullspace.building import build_adapter
from subspacelab.nullspace.config import BuildSettings
from subspacelab.nullspace.forgetting.methods import RIVALS, Rival, rival_of

RANK, HALF = 8, WIDTH // 2
IDS = torch.arange(3, 19).view(2, 8)
SHAPES = [(WIDTH, WIDTH), (HALF, WIDTH), (HALF, WIDTH), (WIDTH, WIDTH), *[(INNER, WIDTH)] * 2, (WIDTH, INNER)]
"""[out, in] of q, k, v, o, gate, up, down in each of the two blocks."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = write_tiny_lm(tmp_path_factory.mktemp("rivals") / "lm")
    write_text(folder.parent / "text.txt")
    return Base(folder, torch.float32, torch.device("cpu"))


def put(base: Base, rival: Rival) -> Trainable:
    folder, rank = base.folder.parent / "adapters" / f"{rival.adapter}-{rival.rank}-{rival.targets}", rival.rank or RANK
    if rival.adapter and not folder.exists():
        text, targets = str(base.folder.parent / "text.txt"), list(rival.targets) if rival.targets else None
        settings = BuildSettings(text, calib_loader_size=40, seq_len=16, targets=targets, device="cpu")
        source = resolve_reference(str(base.folder))
        build_adapter(source, folder, method=rival.adapter, rank=rank, seed=7, settings=settings)
    return rival.put(base, folder, rank, 7)


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def take_steps(trainable: Trainable, steps: int = 3, kind: Any = torch.optim.AdamW) -> None:
    optimizer = kind(trainable.parameters.values(), lr=1e-2)
    for _ in range(steps):
        trainable.model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def lora_size(rank: int, *, down: bool = True, up: bool = True, shapes: list[tuple[int, int]] = SHAPES) -> int:
    return 2 * sum(rank * (up * m + down * n) for m, n in shapes)


SIZES = {
    **dict.fromkeys(("lora", "lora_decay", "lora_kl", "pissa", "milora", "corda"), lora_size(8)),
    **dict.fromkeys(("oplora", "lora_r8", "lora_null_v1"), lora_size(8)),
    "lora_mlp": lora_size(10, shapes=SHAPES[4:]),
    "full": 2 * sum(m * n for m, n in SHAPES),
    "mica": lora_size(8, up=False),
    "oft": 2 * sum(n // 8 * 8 * 7 // 2 for _, n in SHAPES),
    "osf": 2 * sum((min(m, n) - min(m, n) // 2) * (m + n + 1) for m, n in SHAPES),
    **dict.fromkeys(("frozen_random", "lora_null_v2", "lora_null_v2_projected"), lora_size(8, down=False)),
    "lora_null_v2_questions": lora_size(8, down=False),
}


@pytest.mark.parametrize("name", RIVALS)
def test_a_rival_starts_as_the_base_trains_what_it_says_and_moves_nothing_else(base: Base, name: str) -> None:
    plain, trainable = base.load(), put(base, RIVALS[name])
    assert trainable.num_parameters == SIZES[name]
    torch.testing.assert_close(logits_of(trainable.model), logits_of(plain), atol=2e-4, rtol=1e-4)
    frozen = {n: p.clone() for n, p in trainable.model.named_parameters() if not p.requires_grad}
    trains = {n: p.clone() for n, p in trainable.parameters.items()}
    take_steps(trainable)
    after = dict(trainable.model.named_parameters())
    assert all(torch.equal(after[n], before) for n, before in frozen.items())
    assert not any(torch.equal(after[n], before) for n, before in trains.items())
    assert not torch.equal(logits_of(trainable.model), logits_of(plain))
    if trainable.without is not None:
        with trainable.without():
            torch.testing.assert_close(logits_of(trainable.model), logits_of(plain))
        assert trainable.num_parameters == SIZES[name]  # what trained trains again


def update_of(trainable: Trainable, base: Base, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(W, dW) of the layer, by what it makes of unit inputs."""
    w = base.load().get_submodule(name).weight.detach()
    with torch.no_grad():
        return w, trainable.model.get_submodule(name)(torch.eye(w.shape[1])).T - w


def moved(trainable: Trainable, base: Base) -> float:
    """Most that the upper half of any layer's singular triples moved, against the layer's update."""
    found = []
    for name in ("model.layers.0.self_attn.k_proj", "model.layers.0.mlp.up_proj", "model.layers.1.mlp.down_proj"):
        w, update = update_of(trainable, base, name)
        left, _, right = torch.linalg.svd(w)
        k = min(w.shape) // 2  # of both, since 128 is more than these layers have
        found += [(update @ right[:k].T).norm() / update.norm(), (left[:, :k].T @ update).norm() / update.norm()]
    return float(max(found))


def test_oplora_keeps_the_upper_singular_triples(base: Base) -> None:
    trainable = put(base, RIVALS["oplora"])
    take_steps(trainable, 5)
    assert moved(trainable, base) < 1e-4


def test_osf_keeps_them_by_plain_gradients_and_not_by_adamw(base: Base) -> None:
    # PEFT projects the gradients; AdamW then scales each number of a step by itself.
    for kind, least, most in ((torch.optim.SGD, 0.0, 1e-3), (torch.optim.AdamW, 0.1, 1.0)):
        trainable = put(base, RIVALS["osf"])
        take_steps(trainable, 5, kind)
        assert least <= moved(trainable, base) < most


def test_oft_turns_the_inputs_and_no_more(base: Base) -> None:
    trainable = put(base, RIVALS["oft"])
    take_steps(trainable, 5)
    w, update = update_of(trainable, base, "model.layers.0.mlp.gate_proj")
    before, after = (torch.linalg.svdvals(x) for x in (w, w + update))
    assert update.norm() > 1e-2
    torch.testing.assert_close(after, before, atol=1e-3, rtol=1e-3)


def test_the_frozen_sides_are_where_the_methods_say(base: Base) -> None:
    assert all("lora_B" in name for name in put(base, RIVALS["frozen_random"]).parameters)  # PEFT's lora_B is our A
    trainable = put(base, RIVALS["mica"])
    assert all("lora_A" in name for name in trainable.parameters)
    layer: Any = trainable.model.model.layers[0].mlp.down_proj
    w = layer.get_base_layer().weight.detach()
    bottom = torch.linalg.svd(w).U[:, w.shape[0] - RANK :]
    up = layer.lora_B["default"].weight.detach()
    torch.testing.assert_close(up @ up.T, bottom @ bottom.T, atol=1e-4, rtol=1e-4)


def test_two_makings_of_a_rival_are_equal(base: Base) -> None:
    for name in ("lora", "mica", "oft"):
        one, two = (put(base, RIVALS[name]).parameters for _ in range(2))
        assert all(torch.equal(one[key], two[key]) for key in one | two)


def test_an_unknown_rival_is_one_line() -> None:
    with pytest.raises(ValueError, match=r"^method='lorra': allowed are lora, lora_r8"):
        rival_of("lorra")
