"""Operations of one picture, against counts by hand."""

import torch

from subspacelab.lowrank.architectures import ModelSpec, build_model
from subspacelab.lowrank.baselines import (
    PCA_BASIS,
    PCA_SKETCH,
    RANDOM_BASIS,
    RANDOM_SKETCH,
    SVD,
    eigh_flops,
    flops_per_picture,
    qr_flops,
)
from subspacelab.lowrank.state import LowRankModel

TOKENS, DIM, RANK, STEPS = 16, 24, 6, 3


def product(m: int, k: int, n: int) -> int:
    return 2 * m * k * n


def trained(arch: str, *, refine: bool = False) -> LowRankModel:
    spec = ModelSpec(arch, TOKENS, DIM, RANK, power_steps=STEPS, refine=refine)
    return LowRankModel(build_model(spec, seed=0).eval(), 1, 0)


def test_operations_are_those_counted_by_hand() -> None:
    models = {name: trained(name) for name in ("MLP", "Sketch")}
    found = flops_per_picture(models, RANK, TOKENS, DIM)
    projection = product(RANK, TOKENS, DIM) + product(TOKENS, RANK, DIM)
    gram = product(TOKENS, DIM, TOKENS)
    step = product(DIM, TOKENS, RANK) + product(TOKENS, DIM, RANK) + qr_flops(TOKENS, RANK)
    sketch = product(TOKENS, DIM, RANK) + qr_flops(TOKENS, RANK) + STEPS * step + projection
    rows = TOKENS * (product(1, DIM, 1024) + product(1, 1024, 256) + product(1, 256, RANK))
    columns = DIM * (product(1, TOKENS, 512) + product(1, 512, 256) + product(1, 256, RANK))
    shortcut = product(TOKENS, DIM, RANK)
    assert found == {
        SVD: gram + eigh_flops(TOKENS) + projection,
        "MLP": rows + columns + shortcut + product(TOKENS, RANK, DIM),
        **dict.fromkeys(["Sketch", PCA_SKETCH, RANDOM_SKETCH], sketch),
        **dict.fromkeys([PCA_BASIS, RANDOM_BASIS], 2 * product(TOKENS, DIM, RANK)),
    }


def test_counting_leaves_the_network_where_it_is_and_sees_the_layer_after_it() -> None:
    plain, refined = trained("ResMLP"), trained("ResMLP", refine=True)
    counts = [flops_per_picture({"ResMLP": one}, RANK, TOKENS, DIM)["ResMLP"] for one in (plain, refined)]
    assert counts[1] - counts[0] == product(TOKENS, DIM, DIM)
    assert {p.device for p in plain.network.parameters()} == {torch.device("cpu")}


def test_a_square_qr_with_its_q_takes_eight_thirds_of_a_cube() -> None:
    assert qr_flops(30, 30) == 8 * 30**3 // 3
