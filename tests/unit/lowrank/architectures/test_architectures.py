"""The networks: sizes, rank, aliases, seeds, where they start, and what AdaLoRA can switch off."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.unit.lowrank.caches import random_features
from torch import Tensor, nn

from subspacelab.lowrank.architectures import ALIASES, AdaLoRA, ModelSpec, build_model, canonical_arch
from subspacelab.lowrank.architectures.adalora import SVDLinear
from subspacelab.lowrank.architectures.linear import Linear

TOKENS, DIM, RANK = 16, 12, 4
NETWORKS = ("ResMLP", "MLP", "AdaLoRA")


def spec_of(arch: str, **given) -> ModelSpec:
    return replace(ModelSpec(arch, TOKENS, DIM, RANK), **given)


def orthonormal_basis() -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.linalg.qr(torch.randn(DIM, RANK, generator=generator, dtype=torch.float64)).Q


def rank_of(matrix: Tensor) -> int:
    values = np.linalg.svd(matrix.detach().numpy(), compute_uv=False)
    # In float64 rounding leaves directions of about 1e-16 of the largest; none of ours is as weak as 1e-12.
    return int((values > 1e-12 * values[0]).sum())


def linear_widths(network: nn.Sequential) -> list[tuple[int, int]]:
    return [(m.in_features, m.out_features) for m in network.modules() if isinstance(m, nn.Linear)]


@pytest.mark.parametrize("given", [{}, {"shortcut": False}], ids=["shortcut", "plain"])
@pytest.mark.parametrize("arch", ALIASES)
def test_a_and_b_are_thin_and_their_product_has_the_rank(arch: str, given: dict) -> None:
    model = build_model(spec_of(arch, **given), seed=0).double().eval()
    a, b, approximation = model(random_features(3, TOKENS, DIM).double())
    assert a.shape == (3, TOKENS, RANK)
    assert b.shape == (3, RANK, DIM)
    assert torch.equal(approximation, a @ b)
    assert [rank_of(one) for one in approximation] == [RANK] * 3


@pytest.mark.parametrize("arch", ALIASES)
def test_the_refined_ablation_leaves_the_rank(arch: str) -> None:
    x = random_features(2, TOKENS, DIM).double()
    _, _, refined = build_model(spec_of(arch, refine=True), seed=0).double().eval()(x)
    assert all(rank_of(one) > RANK for one in refined)


@pytest.mark.parametrize(("alias", "arch"), [(alias, arch) for arch in ALIASES for alias in (arch, *ALIASES[arch])])
def test_every_alias_names_its_architecture(alias: str, arch: str) -> None:
    assert canonical_arch(alias) == arch


def test_the_aliases_are_those_of_the_original() -> None:
    names = {"symmetric", "LowRankProjSymmetric", "LowRankProjMLP", "adaptive_adalora", "adaptive"}
    assert {a for aliases in ALIASES.values() for a in aliases} == names | {"AdaptiveLowRankProjAdaLoRA"}


def test_an_unknown_architecture_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="'resnet'") as e:
        canonical_arch("resnet")
    for arch, aliases in ALIASES.items():
        assert all(name in str(e.value) for name in (arch, *aliases))


@pytest.mark.parametrize("rank", [0, DIM + 1])
def test_a_rank_that_the_matrix_cannot_have_is_refused(rank: int) -> None:
    with pytest.raises(ValueError, match=rf"{rank} of a \[16, 12\].*<= 12"):
        build_model(spec_of("MLP", rank=rank), seed=0)


@pytest.mark.parametrize("arch", ALIASES)
def test_a_seed_gives_the_same_bytes_and_leaves_the_global_generator(arch: str) -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    one = build_model(spec_of(arch), seed=7).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12)
    again, other = (build_model(spec_of(arch), seed=seed).state_dict() for seed in (7, 8))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("arch", NETWORKS)
def test_networks_start_at_the_projection_on_the_basis(arch: str) -> None:
    basis, x = orthonormal_basis(), random_features(3, TOKENS, DIM).double()
    model = build_model(spec_of(arch), seed=0, basis=basis).double().eval()
    # The parameters hold the basis in float32.
    torch.testing.assert_close(model(x)[2], x @ basis @ basis.T, rtol=0, atol=1e-6 * x.abs().max().item())


def test_the_sketch_starts_at_the_basis() -> None:
    basis = orthonormal_basis().float()
    assert torch.equal(build_model(spec_of("Sketch"), seed=0, basis=basis).net.omega, basis)


def test_a_basis_without_shortcuts_is_refused() -> None:
    with pytest.raises(ValueError, match="start: random"):
        build_model(spec_of("MLP", shortcut=False), seed=0, basis=orthonormal_basis().float())


@pytest.mark.parametrize("refine", [False, True])
@pytest.mark.parametrize("arch", ALIASES)
def test_gradients_reach_every_parameter(arch: str, refine: bool) -> None:
    model, x = build_model(spec_of(arch, refine=refine), seed=0), random_features(3, TOKENS, DIM)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        (model(x)[2] - x).square().mean().backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("arch", ["MLP", "AdaLoRA"])
def test_the_plain_stacks_have_the_originals_widths(arch: str) -> None:
    net = build_model(spec_of(arch), seed=0).net
    assert linear_widths(net.rows) == [(DIM, 1024), (1024, 256), (256, RANK)]
    assert linear_widths(net.columns) == [(TOKENS, 512), (512, 256), (256, RANK)]
    assert {type(m) for m in net.rows if isinstance(m, nn.Linear)} == {SVDLinear if arch == "AdaLoRA" else Linear}


def test_dropout_acts_in_training_alone() -> None:
    x = random_features(2, TOKENS, DIM)
    for arch in NETWORKS:
        model = build_model(spec_of(arch, dropout=0.5), seed=0)
        assert not torch.equal(model.train()(x)[2], model(x)[2])
        assert torch.equal(model.eval()(x)[2], model(x)[2])


def test_a_zero_of_lora_e_takes_a_column_of_a_out() -> None:
    x, model = random_features(2, TOKENS, DIM), build_model(spec_of("AdaLoRA"), seed=0).eval()
    net = model.net
    assert isinstance(net, AdaLoRA)
    whole, rows, _ = model(x)
    assert net.effective_rank_mask().tolist() == [True] * RANK
    with torch.no_grad():
        net.lora_E[1] = 0
        net.lora_E[2] = -2
    a, b, approximation = model(x)
    assert torch.equal(b, rows)
    assert torch.equal(a, whole * torch.tensor([1.0, 0.0, -2.0, 1.0]))
    assert net.effective_rank_mask().tolist() == [True, False, True, True]
    assert net.current_effective_rank() == 3
    # Columns 0, 2 and 3 are all that is left; float32 sums of 4 products in another order.
    torch.testing.assert_close(approximation, a[..., [0, 2, 3]] @ b[:, [0, 2, 3]], rtol=1e-4, atol=1e-5)


def test_orthogonality_is_the_mean_norm_over_all_lora_matrices() -> None:
    model = build_model(spec_of("AdaLoRA"), seed=0).double()
    norms = []
    for name, parameter in model.named_parameters():
        p = parameter.detach().numpy()
        if name.endswith("lora_A"):
            norms.append(np.sqrt(((p @ p.T - np.eye(len(p))) ** 2).sum()))
        elif name.endswith("lora_B"):
            norms.append(np.sqrt(((p.T @ p - np.eye(p.shape[1])) ** 2).sum()))
    assert len(norms) == 12
    assert model.net.orthogonality().item() == pytest.approx(np.mean(norms), rel=1e-12)  # float64
