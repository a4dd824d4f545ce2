"""A training: what it writes, what its loss is made of, when it stops, what it refuses."""

from pathlib import Path

import pytest
import torch
from tests.unit.lowrank.caches import write_random_cache
from tests.unit.lowrank.trainings import ALLOCATOR, RANK, SEED, contents, settings_of, train_tiny

from subspacelab.core.devices import Processes, compiled_or_eager
from subspacelab.core.files import read_json
from subspacelab.core.settings import validate
from subspacelab.lowrank import preparation, trainer
from subspacelab.lowrank.architectures import ALIASES, ModelSpec, build_model
from subspacelab.lowrank.config import ContinueLowrankConfig, TrainLowrankConfig
from subspacelab.lowrank.features import Features, split_rows
from subspacelab.lowrank.preparation import feature_statistics
from subspacelab.lowrank.state import load_model
from subspacelab.lowrank.trainer import filled_up, require_even_shares

KEYS = {"epoch", "train_loss", "train_mse", "learning_rate", "val_mse", "val_cosine"}
STILL = 1e-30  # a learning rate that leaves every float32 parameter as it is


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Features:
    return write_random_cache(tmp_path_factory.mktemp("cache"))


def rows_of(features: Features, split: str) -> list[int]:
    return split_rows(list(features.index["sha256"]), SEED)[split]


@pytest.mark.parametrize("arch", ALIASES)
def test_a_training_leaves_model_state_and_history(features: Features, tmp_path: Path, arch: str) -> None:
    curve = []
    result = train_tiny(features, tmp_path, arch, epochs=2, log=lambda metrics, step: curve.append((step, metrics)))
    assert result.folder == tmp_path / arch
    assert {path.name for path in result.folder.iterdir()} == {
        "best_model.json", "best_model.safetensors", "best_state.safetensors", "last.safetensors", "history.json",
    }  # fmt: skip
    history = read_json(result.folder / "history.json")
    assert [set(entry) for entry in history] == [KEYS | ({"live_rank"} if arch == "AdaLoRA" else set())] * 2
    assert history == result.progress.history == [{"epoch": step, **metrics} for step, metrics in curve]
    described = read_json(result.folder / "best_model.json")
    wanted = {"arch": arch, "rank": RANK, "tokens": 16, "dim": 12, "epoch": result.progress.best_epoch, "seed": SEED}
    assert described.items() >= wanted.items()
    assert described["normalisation"]["kind"] == "rms"


@pytest.mark.parametrize("normalisation", ["rms", "layernorm", "none"])
@pytest.mark.parametrize("arch", ["ResMLP", "Sketch"])
def test_the_stored_model_gives_the_recorded_validation_mse(
    features: Features, tmp_path: Path, arch: str, normalisation: str
) -> None:
    result = train_tiny(features, tmp_path, arch, epochs=2, normalisation=normalisation)
    trained = load_model(result.folder)
    x = trained.network.spec.normalisation.apply(features.read(rows_of(features, "validation")))
    mse = (trained.network(x)[2] - x).square().mean().item()
    assert trained.epoch == result.progress.best_epoch
    assert result.metrics["val_mse"] == min(entry["val_mse"] for entry in result.progress.history)
    assert mse == pytest.approx(result.metrics["val_mse"], rel=1e-5)  # float32 means in another order


def test_without_its_further_terms_the_loss_is_the_mse(features: Features, tmp_path: Path) -> None:
    for arch in ALIASES:
        plain = {"lambda_B": 0.0, "lambda_ortho": 0.0, "orth_reg_weight": 0.0}
        history = train_tiny(features, tmp_path, arch, epochs=1, **plain).progress.history
        assert history[0]["train_loss"] == history[0]["train_mse"]


def test_the_loss_is_made_of_the_terms_that_were_asked_for(features: Features, tmp_path: Path) -> None:
    weights = {"lambda_B": 0.3, "lambda_ortho": 0.7, "orth_reg_weight": 0.2, "activation_orth_weight": 0.4}
    given = {"lr": STILL, "epochs": 1, "dropout": 0.0, "start": "random"} | weights
    for arch in ("MLP", "AdaLoRA"):
        result = train_tiny(features, tmp_path, arch, **given)
        model = load_model(result.folder).network.double()  # as it was at every step
        x = model.spec.normalisation.apply(features.read(rows_of(features, "train")).double())
        a, b, approximation = (t.detach() for t in model(x))
        unit = a / a.norm(dim=1, keepdim=True)
        ortho = ((unit.mT @ unit - torch.eye(RANK)) ** 2).sum() / (len(x) * RANK**2)
        mse = ((approximation - x) ** 2).mean()
        expected = mse + 0.3 * (b**2).mean() + 0.7 * ortho
        if arch == "AdaLoRA":
            expected += 0.2 * model.net.orthogonality().detach() + 0.4 * ortho
        first = result.progress.history[0]
        # The training computes in float32.
        assert first["train_mse"] == pytest.approx(mse.item(), rel=1e-5)
        assert first["train_loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_training_brings_every_network_nearer(features: Features, tmp_path: Path) -> None:
    for arch in ALIASES:
        history = train_tiny(features, tmp_path, arch, epochs=4, start="random", lr=3e-3).progress.history
        assert history[-1]["train_mse"] < history[0]["train_mse"], arch


def test_the_allocator_leaves_the_share_it_was_told(features: Features, tmp_path: Path) -> None:
    history = train_tiny(features, tmp_path, "AdaLoRA", **ALLOCATOR).progress.history
    assert history[-1]["live_rank"] == RANK / 2
    free = train_tiny(features, tmp_path / "free", "AdaLoRA").progress.history
    assert [entry["live_rank"] for entry in free] == [RANK] * 3


def test_an_allocator_that_does_not_fit_is_refused_before_anything_is_written(
    features: Features, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"1000 \+ final_warmup 1000 steps do not fit into the 15 steps"):
        train_tiny(features, tmp_path, "AdaLoRA", use_rank_allocator=True)
    assert not (tmp_path / "AdaLoRA").exists()


def test_it_stops_when_validation_no_longer_improves(features: Features, tmp_path: Path) -> None:
    result = train_tiny(features, tmp_path, "MLP", epochs=20, lr=STILL, patience=2)
    assert (result.progress.best_epoch, result.progress.epoch) == (1, 3)
    assert result.progress.finished
    assert load_model(result.folder).epoch == 1


def test_the_learning_rate_is_halved_on_a_plateau(features: Features, tmp_path: Path) -> None:
    # Steps of 1e-6 improve by less than the scheduler's 1e-4; after epoch 1 and four more without a gain it halves.
    history = train_tiny(features, tmp_path, "Sketch", epochs=7, lr=1e-6, patience=20).progress.history
    assert [entry["learning_rate"] for entry in history] == [1e-6] * 5 + [5e-7] * 2


@pytest.mark.parametrize("arch", ["MLP", "Sketch"])
def test_a_diverged_training_is_one_line_that_says_what_to_lower(features: Features, tmp_path: Path, arch: str) -> None:
    with pytest.raises(ValueError, match=rf"{arch} diverged.*lower the learning rate \(1e\+30") as e:
        train_tiny(features, tmp_path, arch, lr=1e30)
    assert "\n" not in str(e.value)


def test_a_training_that_diverges_in_its_last_step_says_so_too(features: Features, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"MLP diverged.*lower the learning rate \(1e\+30") as e:
        train_tiny(features, tmp_path, "MLP", lr=1e30, batch_size=100, epochs=1)  # one step: its gradient is finite
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("batch_size", "num_pictures", "num_processes"), [(8, 100, 16), (6, 100, 4), (4, 3, 4), (1, 100, 2)]
)
def test_processes_that_would_share_unevenly_are_refused_with_the_numbers(
    batch_size: int, num_pictures: int, num_processes: int
) -> None:
    said = f"batch_size: {batch_size} pictures of {num_pictures} .* do not divide by {num_processes} processes"
    with pytest.raises(ValueError, match=said):
        require_even_shares(batch_size, num_pictures, num_processes)


def test_processes_that_share_evenly_are_not() -> None:
    assert [require_even_shares(*even) for even in ((7, 2, 1), (8, 100, 4))] == [None, None]


def test_sixteen_processes_train_nothing_and_say_so(
    features: Features, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "processes", lambda cpu: Processes(0, 16))
    with pytest.raises(ValueError, match="do not divide by 16 processes"):
        train_tiny(features, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_all_processes_decide_by_the_main_ones_validation(
    features: Features, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = iter([3.0, 2.0, 2.5, 2.6])
    monkeypatch.setattr(Processes, "from_main", lambda self, value: value | {"val_mse": next(heard)})
    progress = train_tiny(features, tmp_path, "MLP", epochs=9, patience=2).progress
    assert (progress.best_epoch, progress.epoch) == (2, 4)
    assert [entry["val_mse"] for entry in progress.history] == [3.0, 2.0, 2.5, 2.6]


def test_float64_sums_are_where_float64_is(features: Features, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(features, "train")
    on_cpu, for_mps = (feature_statistics(features, rows, "rms", torch.device(d)) for d in ("cpu", "mps"))
    assert torch.equal(on_cpu.basis, for_mps.basis)
    asked = []
    monkeypatch.setattr(trainer, "float64_place", lambda device: asked.append(device) or torch.device("cpu"))
    train_tiny(features, tmp_path, epochs=1)
    assert asked == [torch.device("cpu")]


def test_a_gpu_without_a_compiler_trains_eagerly_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def compile(function):
        def fail(*_: object) -> None:
            raise RuntimeError("Failed to find C compiler.\nPlease set CC.")

        return fail

    model = torch.nn.Identity()
    monkeypatch.setattr(torch, "compile", compile)
    assert compiled_or_eager(model, torch.device("cpu")) is model
    err = capsys.readouterr().err
    assert "torch.compile does not work here (Failed to find C compiler. Please set CC.)" in err
    assert err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["ResMLP", "MLP", "AdaLoRA"])
def test_a_network_is_compiled_once_and_as_a_whole(arch: str) -> None:
    """On the meta device, which stands for a GPU: no graph breaks at what is asked of a CPU, and none is of another
    size."""
    graphs = []

    def compile(graph: torch.fx.GraphModule, inputs: list) -> object:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    network = build_model(ModelSpec(arch, 16, 12, RANK), seed=0, basis=torch.eye(12)[:, :RANK]).to("meta")
    call = filled_up(torch.compile(network, backend=compile), 4)
    for count in (4, 1, 3, 4):
        a, b, approximation = call(torch.empty(count, 16, 12, device="meta"))
        assert (a.shape, b.shape, approximation.shape) == ((count, 16, RANK), (count, RANK, 12), (count, 16, 12))
        approximation.sum().backward()
    assert len(graphs) == 1


def test_a_batch_that_is_filled_up_gives_values_and_gradients_of_the_batch_alone(features: Features) -> None:
    spec, sizes = ModelSpec("ResMLP", 16, 12, RANK, dropout=0.0), []
    plain, filled = (build_model(spec, seed=0, basis=torch.eye(12)[:, :RANK]) for _ in range(2))

    def compiled(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        sizes.append(len(x))
        return filled(x)

    call = filled_up(compiled, 4)
    for rows in ([0, 1, 2, 3], [8], [9, 10, 11]):
        x = features.read(rows)
        for found, expected in zip(call(x), plain(x), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)  # products of another height
        for network in (call, plain):
            (network(x)[2] - x).square().mean().backward()
    assert set(sizes) == {4}
    for one, other in zip(filled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_a_training_whose_features_stay_on_the_device_is_the_same(
    features: Features, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_tiny(features, tmp_path / "read")
    monkeypatch.setattr(preparation, "free_device_memory", lambda device: 1 << 30)
    train_tiny(features, tmp_path / "kept")
    assert contents(tmp_path / "kept") == contents(tmp_path / "read")


@pytest.mark.parametrize(("pictures", "processes", "steps"), [(8, 1, 2), (9, 1, 3), (9, 2, 2), (10, 2, 3), (3, 2, 1)])
def test_steps_are_counted_as_they_are_taken(pictures: int, processes: int, steps: int) -> None:
    assert trainer.num_steps(pictures, 4, processes) == steps
    for rank in range(processes):
        batches = trainer.batches_of(range(pictures), 4)
        assert len(trainer._share_of(batches, Processes(rank, processes))) == steps


def test_rank_and_architecture_are_checked_first(features: Features, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rank: 13"):
        train_tiny(features, tmp_path, rank=13)
    with pytest.raises(ValueError, match="no such architecture"):
        train_tiny(features, tmp_path, "nosuch")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"epochs": 0}, "epochs: must be greater than or equal to 1, got 0"),
        ({"batch_size": 0}, "batch_size: must be greater than or equal to 1"),
        ({"patience": 0}, "patience: must be greater than or equal to 1"),
        ({"dropout": 1.0}, "dropout: must be less than 1, got 1.0"),
        ({"lr": 0.0}, "lr: must be greater than 0"),
        ({"clip": -1.0}, "clip: must be greater than 0"),
        ({"power_steps": -1}, "power_steps: must be greater than or equal to 0"),
        ({"normalisation": "batchnorm"}, "train_lowrank.normalisation: .*'batchnorm'"),
        ({"start": "warm"}, "train_lowrank.start: .*'warm'"),
        ({"learning_rate": 1.0}, "train_lowrank.learning_rate: no such key"),
        ({"epochs": "many"}, "train_lowrank.epochs: .*'many'"),
        ({"allocator": {"keep_ratio": 2.0}}, "keep_ratio: must be less than or equal to 1"),
    ],
)
def test_settings_that_make_no_sense_are_one_line(values: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said) as e:
        validate(TrainLowrankConfig, values, where="train_lowrank")
    assert "\n" not in str(e.value)


def test_good_settings_pass_the_same_check() -> None:
    assert validate(TrainLowrankConfig, {"epochs": 3, "start": "random"}, where="x") == TrainLowrankConfig(
        epochs=3, start="random"
    )
    assert settings_of().batch_size == 4
    with pytest.raises(ValueError, match="must be greater than or equal to 0, got -1"):
        ContinueLowrankConfig(-1)
