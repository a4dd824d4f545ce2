"""The rank allocator against PEFT's, step by step to the last bit, and its own rules."""

import copy

import pytest
import torch
from torch import Tensor, nn

from subspacelab.lowrank.architectures.adalora import RankAllocator, Schedule, make_schedule
from subspacelab.lowrank.config import AllocatorConfig

RANK, A_WIDTH, B_WIDTH, STEPS = 8, 7, 5, 60

Triplet = tuple[nn.Parameter, nn.Parameter, nn.Parameter]


def schedule_of(keep_ratio: float = 0.25, *, final_warmup: int = 15, rank: int = RANK) -> Schedule:
    config = AllocatorConfig(init_warmup=10, final_warmup=final_warmup, mask_interval=5, keep_ratio=keep_ratio)
    return make_schedule(config, rank=rank, total_steps=STEPS)


def random_triplet() -> Triplet:
    generator = torch.Generator().manual_seed(0)
    shapes = ((RANK, 1), (RANK, A_WIDTH), (RANK, B_WIDTH))
    e, a, b = (nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes)
    return e, a, b


@torch.no_grad()
def descend(triplet: tuple[Tensor, ...], step: int) -> None:
    """A step of SGD by gradients drawn from the step; they stay, as they do until zero_grad."""
    generator = torch.Generator().manual_seed(1000 + step)
    for p in triplet:
        p.grad = torch.randn(p.shape, generator=generator)
        p.sub_(0.05 * p.grad)


class PeftLayer(nn.Module):
    """The same tensors by PEFT's names: lora_B [out, rank] is the transpose of our third."""

    def __init__(self, triplet: Triplet) -> None:
        super().__init__()
        e, a, b = (p.detach() for p in copy.deepcopy(triplet))
        self.lora_A = nn.ParameterDict({"default": nn.Parameter(a)})
        self.lora_B = nn.ParameterDict({"default": nn.Parameter(b.T)})
        self.lora_E = nn.ParameterDict({"default": nn.Parameter(e)})

    @torch.no_grad()
    def take(self, triplet: tuple[Tensor, ...], gradients: tuple[Tensor, ...]) -> None:
        """The same step of SGD as `descend`: values and gradients, E's values aside (they are its own)."""
        (_, a, b), (ge, ga, gb) = triplet, gradients
        self.lora_A.default.copy_(a)
        self.lora_B.default.copy_(b.T)
        self.lora_E.default.sub_(0.05 * ge)
        self.lora_A.default.grad, self.lora_B.default.grad, self.lora_E.default.grad = ga, gb.T, ge


def peft_scores(allocator, prefix: str = "layer") -> Tensor:
    """The scores of PEFT's triplets, combined as its mask_to_budget does."""
    a = torch.mean(allocator._element_score(f"{prefix}.lora_A.default"), dim=1, keepdim=True)
    b = torch.mean(allocator._element_score(f"{prefix}.lora_B.default"), dim=0, keepdim=False).view(-1, 1)
    e = allocator._element_score(f"{prefix}.lora_E.default")
    return allocator._combine_ipt(e, torch.cat([a, b], dim=1))


@pytest.mark.parametrize(("keep_ratio", "final_warmup"), [(0.25, 15), (0.5, 13), (0.75, 0)])
def test_every_step_is_pefts_to_the_last_bit(keep_ratio: float, final_warmup: int) -> None:
    import peft
    from peft.tuners.adalora import layer as layer_code

    ours, schedule = random_triplet(), schedule_of(keep_ratio, final_warmup=final_warmup)
    model = nn.ModuleDict({"layer": PeftLayer(ours)})
    config = peft.AdaLoraConfig(
        init_r=RANK, target_r=schedule.target, tinit=10, tfinal=final_warmup, deltaT=5, beta1=0.85, beta2=0.85,
        total_step=STEPS,
    )  # fmt: skip
    theirs, allocator = layer_code.RankAllocator(model, config, "default"), RankAllocator(schedule, ours)
    alive = []
    for step in range(STEPS):
        descend(ours, step)
        model["layer"].take(ours, tuple(p.grad for p in ours))
        allocator.step(step)
        # As AdaLoraModel calls it; after total - tfinal this is loralib's rule (masks with frozen scores), where
        # AdaLoraModel re-applies a stored mask.
        budget, pattern = theirs.update_and_allocate(model, step)
        e = model["layer"].lora_E.default
        assert torch.equal(ours[0], e), f"step {step}"
        assert torch.equal(allocator.scores(), peft_scores(theirs)), f"step {step}"
        assert schedule.budget(step) == (budget, pattern is not None)
        alive.append(int((e != 0).sum()))
    assert alive[:11] == [RANK] * 11  # steps up to the end of the warm-up
    assert alive[15] == schedule.budget(15)[0] < RANK
    assert set(alive[STEPS - final_warmup + 1 :]) <= {schedule.target}  # masked at every step after total - final


def test_the_final_phase_keeps_one_mask() -> None:
    """Frozen scores give what AdaLoraModel stores at total - tfinal as rank_pattern and re-applies at every step."""
    triplet, schedule = random_triplet(), schedule_of()
    allocator, masks = RankAllocator(schedule, triplet), []
    for step in range(STEPS):
        descend(triplet, step)
        allocator.step(step)
        masks.append((triplet[0] != 0).flatten().tolist())
    assert all(mask == masks[45] for mask in masks[45:])  # 60 - 15
    assert sum(masks[45]) == schedule.target


def test_values_regrow_between_masks() -> None:
    triplet = random_triplet()
    allocator, alive = RankAllocator(schedule_of(), triplet), {}
    for step in range(26):
        descend(triplet, step)
        allocator.step(step)
        alive[step] = int((triplet[0] != 0).sum())
    budgets = {step: schedule_of().budget(step)[0] for step in (15, 20, 25)}
    assert {step: alive[step] for step in budgets} == budgets
    assert alive[16] == alive[21] == RANK


def test_keeping_everything_is_a_no_op() -> None:
    triplet, free = random_triplet(), random_triplet()
    allocator = RankAllocator(schedule_of(1.0), triplet)
    for step in range(STEPS):
        descend(triplet, step)
        descend(free, step)
        allocator.step(step)
    assert all(torch.equal(a, b) for a, b in zip(triplet, free, strict=True))


def test_the_schedule_is_the_papers_formula() -> None:
    schedule = schedule_of()
    assert schedule.target == 2
    for step in range(STEPS):
        budget, masks = schedule.budget(step)
        if step <= 10:
            assert (budget, masks) == (8, False)
        elif step > 45:
            assert (budget, masks) == (2, True)
        else:
            assert budget == int(2 + 6 * (1 - (step - 10) / 35) ** 3)
            assert masks == (step % 5 == 0)


def test_the_target_is_rounded_and_never_nothing() -> None:
    assert schedule_of(0.3, rank=10).target == 3
    assert schedule_of(0.26, rank=10).target == 3
    assert schedule_of(0.01).target == 1


@pytest.mark.parametrize(("first", "last"), [(30, 30), (61, 0), (10, 50)])
def test_warm_ups_that_do_not_fit_are_refused_with_the_numbers(first: int, last: int) -> None:
    with pytest.raises(ValueError) as e:
        make_schedule(AllocatorConfig(init_warmup=first, final_warmup=last), rank=RANK, total_steps=STEPS)
    assert f"init_warmup {first} + final_warmup {last} steps do not fit into the 60 steps" in str(e.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"keep_ratio": 0.0}, "keep_ratio"),
        ({"keep_ratio": 1.1}, "keep_ratio"),
        ({"init_warmup": -1}, "init_warmup: must be greater than or equal to 0, got -1"),
        ({"mask_interval": 0}, "mask_interval: must be greater than or equal to 1, got 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(given: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        AllocatorConfig(**given)


@pytest.mark.parametrize("broken_at", [5, 23, 50])
def test_a_saved_allocator_continues_identically(broken_at: int) -> None:
    whole = random_triplet()
    allocator = RankAllocator(schedule_of(), whole)
    for step in range(broken_at):
        descend(whole, step)
        allocator.step(step)
    e, a, b = (nn.Parameter(p.detach().clone()) for p in whole)
    resumed = RankAllocator(schedule_of(), (e, a, b))
    resumed.load({name: tensor.clone() for name, tensor in allocator.state().items()})
    for step in range(broken_at, STEPS):
        descend(whole, step)
        descend((e, a, b), step)
        allocator.step(step)
        resumed.step(step)
        assert torch.equal(e, whole[0])
        assert torch.equal(resumed.scores(), allocator.scores())
