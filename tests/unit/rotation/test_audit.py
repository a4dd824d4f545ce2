"""Audits of LoRA adapters: against PEFT's own merged weights, against dense linear algebra, and planted updates."""

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tests.language_models import write_text, write_tiny_lm
from tests.unit.rotation.adapters import PATTERNS, TARGETS, Model, save_adapter
from torch import Tensor
from transformers import AutoModelForCausalLM

from subspacelab.checkpoints import canonical_name, open_adapter
from subspacelab.core.errors import CheckpointError, SettingError
from subspacelab.data.text import read_texts
from subspacelab.linalg.svd import svd
from subspacelab.linalg.updates import principal_energy
from subspacelab.models.text_windows import text_windows
from subspacelab.rotation.auditing import FILES, Audit, audit
from subspacelab.rotation.commands import audit as command

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft", "ignore::RuntimeWarning:peft")
SETTINGS: dict[str, Any] = {"k": 4, "null_draws": 2, "device": "cpu"}
UNCALIBRATED = {"calib_dataset": None, "calib_loader_size": 16, "seq_len": 512}
PLAIN: dict[str, Any] = {"r": 2, "lora_alpha": 2, "peft_type": "LORA", "base_model_name_or_path": None}


def matrix(tensor: Tensor) -> Tensor:
    return tensor.reshape(len(tensor), -1).double()


def write(folder: Path, tensors: dict[str, Tensor], **config: Any) -> Path:
    """An adapter by hand; keys are `module.part`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(PLAIN | config))
    save_file(
        {f"base_model.model.{k}": t.contiguous() for k, t in tensors.items()}, folder / "adapter_model.safetensors"
    )
    return folder


def pair(m: int, n: int, rank: int = 2, scale: float = 0.1, seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    up, down = torch.randn(m, rank, generator=g), torch.randn(rank, n, generator=g)
    return {"x.lora_A.weight": scale * down, "x.lora_B.weight": up}


@pytest.fixture(scope="module")
def base() -> dict[str, Tensor]:
    return {"x.weight": torch.randn(64, 48, generator=torch.Generator().manual_seed(9))}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        PATTERNS,
        PATTERNS | {"use_rslora": True},
        PATTERNS | {"fan_in_fan_out": True, "target_modules": ["c_attn", "c_proj"]},
        {"target_modules": r".*\.(q_proj|up_proj|c_attn)", "lora_alpha": 3},
    ],
    ids=["plain", "patterns", "rslora", "fan_in_fan_out", "regex"],
)
def test_updates_are_those_that_peft_merges(tmp_path: Path, settings: dict[str, Any]) -> None:
    before, merged = save_adapter(tmp_path, **settings)
    found = audit(tmp_path, before, **SETTINGS)
    keys = {canonical_name(name): name for name in before if not torch.equal(before[name], merged[name])}
    assert sorted(found.layers["weight"]) == sorted(keys)
    for row in found.layers.to_dict("records"):
        w, tuned = (matrix(weights[keys[row["weight"]]]) for weights in (before, merged))
        delta = tuned - w
        values = torch.linalg.svdvals(delta)[: row["rank"]]
        torch.testing.assert_close(found.spectra[row["weight"]], values, rtol=1e-6, atol=1e-9 * values[0].item())
        assert row["norm"] == pytest.approx(delta.norm().item(), rel=1e-6)
        assert row["relative_norm"] == pytest.approx((delta.norm() / w.norm()).item(), rel=1e-6)
        assert row["stable_rank"] == pytest.approx((delta.norm() / values[0]).item() ** 2, rel=1e-6)
        factors = svd(w)
        k = row["k"]
        leading = principal_energy(delta, factors.U[:, :k], factors.Vh[:k].T)
        assert row["leading_energy"] == pytest.approx(leading, rel=1e-6)
        trailing = principal_energy(delta, factors.U[:, -k:], factors.Vh[-k:].T)
        assert row["trailing_energy"] == pytest.approx(trailing, rel=1e-6)


def test_doras_magnitude_is_measured_and_said(tmp_path: Path) -> None:
    before, merged = save_adapter(tmp_path, use_dora=True, target_modules=["q_proj", "up_proj", "c_attn"])
    found = audit(tmp_path, before, **SETTINGS)
    assert any(note.startswith("DoRA: the columns are of D") for note in found.notes)
    assert any(note.startswith("2 square weights are taken as stored [out, in]") for note in found.notes)
    for row in found.layers.to_dict("records"):
        w, tuned = matrix(before[row["weight"]]), matrix(merged[row["weight"]])
        adapter = open_adapter(tmp_path)
        transposed = "c_attn" in row["weight"]
        left, right = adapter.factors(adapter.layers[row["weight"].removesuffix(".weight")], transposed)
        dim = 0 if transposed else 1
        factor = tuned.norm(dim=dim) / (w + left @ right).norm(dim=dim)
        assert row["magnitude_change"] == pytest.approx((factor - 1).square().mean().sqrt().item(), rel=1e-6)


def test_a_planted_update_is_told_from_random_ones(tmp_path: Path, base: dict[str, Tensor]) -> None:
    u, s, vh = torch.linalg.svd(base["x.weight"], full_matrices=False)
    places = {"leading": slice(0, 2), "trailing": slice(-2, None), "middle": slice(20, 22)}
    for name, part in places.items():
        tensors = {"x.lora_A.weight": vh[part] * 0.3, "x.lora_B.weight": u[:, part] * s[0]}
        row = audit(write(tmp_path / name, tensors), base, **SETTINGS).layers.iloc[0]
        most = 64 * 48 / 16
        assert row["leading_energy"] == pytest.approx(most if name == "leading" else 0, abs=1e-3)
        assert row["trailing_energy"] == pytest.approx(most if name == "trailing" else 0, abs=1e-3)
        assert (row["leading_energy_z"] > 5) == (name == "leading")
        assert row["relative_norm"] == pytest.approx(
            0.3 * 2**0.5 * s[0].item() / base["x.weight"].norm().item(), rel=1e-5
        )
        assert (row["stable_rank"], row["effective_rank"]) == pytest.approx((2, 2), rel=1e-5)


def test_a_large_update_off_the_base_intrudes(tmp_path: Path, base: dict[str, Tensor]) -> None:
    row = audit(write(tmp_path, pair(64, 48, scale=3.0)), base, k=4, null_draws=3).layers.iloc[0]
    assert row["intruders"] == 2
    assert row["intruders_null_mean"] == pytest.approx(2, abs=0.7)  # as random updates of that size do
    assert row["angle_mean"] == pytest.approx(row["angle_mean_null_mean"], abs=6 * row["angle_mean_null_std"])


def test_random_updates_do_not_stand_out(tmp_path: Path, base: dict[str, Tensor]) -> None:
    found = [
        audit(write(tmp_path / str(i), pair(64, 48, seed=i)), base, k=8, null_draws=0).layers.iloc[0] for i in range(30)
    ]
    z = pd.Series([row["leading_energy_z"] for row in found])
    assert z.abs().max() < 5
    assert 0.5 < z.std() < 1.6
    assert pd.isna(found[0]["angle_mean_null_mean"])


def test_the_base_is_found_under_other_names(tmp_path: Path, base: dict[str, Tensor]) -> None:
    """GPT-2 is stored without the prefix that its modules have; a hub layout differs from the model's."""
    tensors = {key.replace("x.", "transformer.h.0.x."): t for key, t in pair(64, 48).items()}
    folder = write(tmp_path / "gpt2", tensors)
    assert list(audit(folder, {"h.0.x.weight": base["x.weight"]}, **SETTINGS).layers["weight"]) == ["h.0.x.weight"]
    layout = {key.replace("x.", "model.language_model.layers.0.mlp.up_proj."): t for key, t in pair(64, 48).items()}
    stored = {"model.layers.0.mlp.up_proj.weight": base["x.weight"]}
    found = audit(write(tmp_path / "vl", layout), stored, **SETTINGS)
    assert found.layers[["weight", "module", "layer"]].values.tolist() == [[*stored, "language up", 0]]


def test_the_base_that_the_adapter_names_is_read(tmp_path: Path, base: dict[str, Tensor]) -> None:
    (tmp_path / "base").mkdir()
    save_file(base, tmp_path / "base" / "model.safetensors")
    folder = write(tmp_path / "lora", pair(64, 48), base_model_name_or_path=str(tmp_path / "base"))
    found = audit(folder, **SETTINGS)
    assert found.metrics["base"] == {"reference": "base", "revision": None}
    pd.testing.assert_frame_equal(found.layers, audit(str(folder), base, **SETTINGS).layers)


def test_what_is_saved_is_read_again(tmp_path: Path, base: dict[str, Tensor]) -> None:
    found = audit(write(tmp_path / "lora", pair(64, 48)), base, **SETTINGS)
    found.save(tmp_path / "out")
    read = Audit.load(tmp_path / "out")
    pd.testing.assert_frame_equal(read.layers, found.layers, check_exact=True)
    assert (read.metrics, read.summary) == (found.metrics, found.summary)
    assert torch.equal(read.spectra["x.weight"], found.spectra["x.weight"])
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(FILES)
    for kind in ("updates", "spectra"):
        assert isinstance(read.plot(kind), Figure)
    with pytest.raises(SettingError, match="plot 'x' of an audit: allowed are updates, spectra"):
        read.plot("x")
    assert found.summary.startswith("lora: 1 weights of rank 2; ||D|| / ||W|| is ")


def test_two_runs_give_the_same_numbers(tmp_path: Path, base: dict[str, Tensor]) -> None:
    folder = write(tmp_path, pair(64, 48))
    first, second = (audit(folder, base, **SETTINGS).layers for _ in range(2))
    pd.testing.assert_frame_equal(first, second, check_exact=True)


def test_a_torch_file_is_read_as_tensors_alone(tmp_path: Path, base: dict[str, Tensor]) -> None:
    folder = write(tmp_path, pair(64, 48))
    wanted = audit(folder, base, **SETTINGS).layers
    tensors = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    torch.save(tensors, folder / "adapter_model.bin")
    pd.testing.assert_frame_equal(audit(folder, base, **SETTINGS).layers, wanted, check_exact=True)
    torch.save({"x": Model}, folder / "adapter_model.bin")
    with pytest.raises(ValueError, match="a pickle that holds more than tensors"):
        audit(folder, base)


def test_an_adapter_that_did_nothing(tmp_path: Path, base: dict[str, Tensor]) -> None:
    tensors = pair(64, 48) | {"x.lora_B.weight": torch.zeros(64, 2)}
    found = audit(write(tmp_path, tensors), base, **SETTINGS)
    row = found.layers.iloc[0]
    zero = ["norm", "relative_norm", "stable_rank", "effective_rank", "leading_energy", "intruders"]
    assert (row[zero] == 0).all()
    assert pd.isna(row["leading_energy_z"])
    assert found.plot("spectra") is not None


def test_what_is_left_out_is_said(tmp_path: Path, base: dict[str, Tensor]) -> None:
    more = {
        "gone.lora_A.weight": torch.ones(2, 4),
        "gone.lora_B.weight": torch.ones(4, 2),
        "head.weight": torch.ones(2),
    }
    found = audit(write(tmp_path, pair(64, 48) | more), base, k=40, null_draws=0)
    assert any("1 adapted modules are not in the base and left out, such as gone" in note for note in found.notes)
    assert any("1 tensors of the adapter are no factors" in note for note in found.notes)
    assert any("trailing_energy is empty" in note for note in found.notes)


@pytest.mark.parametrize(
    ("config", "tensors", "said"),
    [
        ({"peft_type": "IA3"}, pair(64, 48), "an adapter of type IA3; only LORA is read"),
        ({"init_lora_weights": "pissa_niter_4"}, pair(64, 48), "took a part out of the base"),
        ({"target_parameters": ["experts.up"]}, pair(64, 48), "merge the adapter and compare the checkpoints"),
        ({"r": 3}, pair(64, 48), "adapter_config.json says rank 3"),
        ({"r": "4"}, pair(64, 48), "not the config of an adapter (r: "),
        ({}, pair(64, 47), "an update of [64, 47], the base's weight is [64, 48]"),
        ({}, {"y.lora_A.weight": torch.ones(2, 3)}, "adapts 'y', which state_dict does not have"),
        ({}, {"x.lora_A.weight": torch.ones(2, 48)}, "x has no lora_B"),
        ({}, {"x.weight": torch.ones(2, 48)}, "no LoRA factors in adapter_model.safetensors"),
        ({}, pair(64, 48) | {"x.lora_A.other.weight": torch.ones(2, 48)}, "x has two lora_A"),
        ({}, pair(64, 48, scale=float("nan")), "NaN"),
        ({}, {k: t.to(torch.int8) for k, t in pair(64, 48).items()}, "int"),
    ],
)
def test_bad_adapters_are_one_line(
    tmp_path: Path, base: dict[str, Tensor], config: dict[str, Any], tensors: dict[str, Tensor], said: str
) -> None:
    with pytest.raises(ValueError) as e:
        audit(write(tmp_path, tensors, **config), base, **SETTINGS)
    assert said in str(e.value)
    assert "\n" not in str(e.value)


def test_bad_places_and_settings_are_one_line(tmp_path: Path, base: dict[str, Tensor]) -> None:
    folder = write(tmp_path / "lora", pair(64, 48))
    with pytest.raises(CheckpointError, match="names no base; give one as `base`"):
        audit(folder)
    with pytest.raises(CheckpointError, match="its base cannot be opened .*no/such/base.*give one as `base`"):
        audit(write(tmp_path / "b", pair(64, 48), base_model_name_or_path="no/such/base"))
    with pytest.raises(CheckpointError, match=re.escape(f"no adapter here; did you mean {tmp_path / 'b'}?")):
        audit(tmp_path, base)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="no adapter here; expected adapter_config.json"):
        audit(tmp_path / "empty", base)
    with pytest.raises(CheckpointError, match="no/such/adapter: no such adapter"):
        audit("no/such/adapter", base)
    for settings, said in (({"k": 0}, "k=0"), ({"null_draws": -1}, "null_draws=-1")):
        with pytest.raises(SettingError, match=said):
            audit(folder, base, **settings)


def test_the_command_writes_a_folder_per_adapter(
    tmp_path: Path, base: dict[str, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    save_file(base, tmp_path / "base.safetensors")
    folders = [write(tmp_path / name, pair(64, 48, seed=i)) for i, name in enumerate(("one", "two"))]
    given: dict[str, Any] = (
        {"base": str(tmp_path / "base.safetensors"), "seed": 42, "track": False} | SETTINGS | UNCALIBRATED
    )
    command(adapters=[str(folder) for folder in folders], output_dir=tmp_path / "out", **given)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"one", "two"}
    assert (tmp_path / "out" / "one" / "audit_updates.png").exists()
    assert "energy in the base's leading directions" in " ".join(capsys.readouterr().out.split())
    command(adapters=[str(folders[0])], output_dir=None, **given)
    with pytest.raises(SettingError, match="two adapters of one name"):
        command(adapters=[str(folders[0])] * 2, output_dir=tmp_path / "out", **given)


def test_the_ratio_on_inputs_is_that_of_the_model_itself(tmp_path: Path) -> None:
    """Against hooks on PEFT's own model: the adapter's part of each layer's output over the base's."""
    write_tiny_lm(tmp_path / "base")
    text = write_text(tmp_path / "text.txt")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    torch.manual_seed(0)
    config = LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    peft_model: Any = get_peft_model(model, config)
    peft_model.save_pretrained(tmp_path / "lora")
    given = {"calib_dataset": str(text), "calib_loader_size": 4, "seq_len": 16}
    found = audit(tmp_path / "lora", tmp_path / "base", **SETTINGS, **given).layers.set_index("weight")
    windows = text_windows(tmp_path / "base", read_texts(str(text)), 4, 16, 42)
    for name, row in found.iterrows():
        layer = peft_model.get_submodule(f"base_model.model.{str(name).removesuffix('.weight')}")
        seen: list[Tensor] = []
        with layer.register_forward_pre_hook(lambda _, x, seen=seen: seen.append(x[0].detach())), torch.no_grad():
            peft_model.disable_adapter_layers()
            peft_model(input_ids=windows.input_ids, attention_mask=windows.attention_mask.long())
            peft_model.enable_adapter_layers()
        x, w = seen[0].flatten(0, 1).double(), layer.base_layer.weight.detach().double()
        delta = layer.get_delta_weight("default").detach().double()
        assert row["input_ratio"] == pytest.approx(((x @ delta.T).norm() / (x @ w.T).norm()).item(), rel=1e-4)
        drawn = torch.randn(50, *delta.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        sizes = torch.stack([(x @ g.T).norm() * delta.norm() / g.norm() / (x @ w.T).norm() for g in drawn])
        assert row["input_ratio_random"] == pytest.approx(sizes.square().mean().sqrt().item(), rel=0.1)


def test_targets_cover_all_kinds_of_modules() -> None:
    assert {name.rpartition(".")[2] for name, _ in Model().named_modules()} >= set(TARGETS)
