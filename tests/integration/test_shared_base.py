"""`--fsdp`: two gloo processes share a base in bfloat16, and train what one process trains that has all of it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.integration.two_processes import start_two
from tests.unit.nullspace.trainings import SETTINGS, contents, train_tiny, write_adapter_of, write_base

from subspacelab.core.files import read_json
from subspacelab.models.causal_lm import load_causal_lm
from subspacelab.nullspace.inits import METHODS
from subspacelab.nullspace.training import _shares

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")

SCRIPT = """
import json, os, sys
from pathlib import Path
from torch.distributed.tensor import DTensor
from tests.unit.nullspace.trainings import train_tiny
from subspacelab.models import fine_tuning
told = {}
plain = fine_tuning._Curves.on_log
def look(self, args, state, control, model, **given):
    kinds = {"base": [], "adapter": []}
    for name, p in model.named_parameters():
        kinds["adapter" if "lora_" in name else "base"].append(p)
    told.update({f"{kind}_dtypes": sorted({str(p.dtype) for p in ps}) for kind, ps in kinds.items()})
    told["all_shared"] = all(isinstance(p, DTensor) for p in kinds["base"])
    told["any_adapter_shared"] = any(isinstance(p, DTensor) for p in kinds["adapter"])
    told["held"] = sum(p.to_local().numel() for p in kinds["base"]) / sum(p.numel() for p in kinds["base"])
    told["gradients_of_base"] = sum(p.grad is not None for p in kinds["base"])
    plain(self, args, state, control, model=model, **given)
fine_tuning._Curves.on_log = look
train_tiny(*map(Path, sys.argv[1:]), fsdp=True)
print(json.dumps(told))
"""


def test_two_processes_share_a_base_and_save_the_adapter_alone(tmp_path: Path) -> None:
    write_base(tmp_path)
    model = load_causal_lm(tmp_path / "lm", device=CPU).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "lm")
    adapter = write_adapter_of(tmp_path, tmp_path / "adapter")
    one = train_tiny(adapter, tmp_path / "one").folder
    both = start_two(SCRIPT, adapter, tmp_path / "two", cwd=tmp_path)
    said = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    for out, _ in said:
        told = json.loads(out.splitlines()[-1])
        assert told.pop("held") == pytest.approx(0.5, abs=0.02)  # norms and rows that do not halve evenly
        assert told == {
            "base_dtypes": ["torch.bfloat16"],
            "adapter_dtypes": ["torch.float32"],
            "all_shared": True,
            "any_adapter_shared": False,
            "gradients_of_base": 0,
        }
    assert contents(tmp_path / "two").keys() == {f"ft/{name}" for name in contents(one)}
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (one, tmp_path / "two" / "ft"))
    built = load_file(adapter / "adapter_model.safetensors")
    for name, tensor in before.items():
        if "lora_A" in name:
            assert torch.equal(after[name], built[name]), name
        else:
            assert (after[name] - tensor).norm() < 0.05 * tensor.norm(), name
    first, second = (read_json(folder / "nullspace.json")["trained"] for folder in (one, tmp_path / "two" / "ft"))
    assert second["final_loss"] == pytest.approx(first["final_loss"], rel=1e-3)
    assert second | {"final_loss": 0} == first | {"final_loss": 0}


def test_what_cannot_be_shared_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    settings = replace(SETTINGS, fsdp=True)
    assert _shares(SETTINGS, "pissa", 2, CPU) == _shares(SETTINGS, "lora", 1, CPU) == 1
    with pytest.raises(ValueError, match="fsdp: there is one process only"):
        _shares(settings, "lora", 1, CPU)
    for name, method in METHODS.items():
        if method.moves_weight:
            with pytest.raises(ValueError, match=f"fsdp: {name} changes the base's weights at its start"):
                _shares(settings, name, 2, CPU)
        else:
            assert _shares(settings, name, 2, CPU) == 2
    with pytest.raises(ValueError, match="lies on cpu here; set `device` to cpu"):
        _shares(settings, "lora", 2, torch.device("mps"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match="lies on cuda here; set `device` to cuda"):
        _shares(settings, "lora", 2, CPU)
