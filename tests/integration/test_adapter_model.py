"""A trained adapter goes into MLflow with its base and comes out with the same logits."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.nullspace.trainings import train_tiny, write_adapter_of, write_base

from subspacelab.models.lora_model import open_adapter
from subspacelab.nullspace.logging import record_training
from subspacelab.tracking import open_run


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora_null_v2", "lora_null_v1"])
def test_an_adapter_comes_back_with_its_logits(place: Any, tmp_path: Path, method: str) -> None:
    import mlflow

    write_adapter_of(write_base(tmp_path / "here"), tmp_path / "built", method)
    result = train_tiny(tmp_path / "built", tmp_path / "out")
    with open_run("nullspace", "train", params={}) as tracker:
        record_training(result, None, tracker)
    (run,) = place.runs("nullspace")
    (logged,) = place.client().search_logged_models([run.info.experiment_id])
    assert logged.name == f"nullspace_{method}_seed_7"
    assert {m.key for m in logged.metrics} >= {"final_loss", "trainable_parameters"}
    folder = place.root / "mlruns" / "artifacts" / "models" / logged.model_id / "artifacts"
    assert not {p.suffix for p in folder.rglob("*")} & {".pkl", ".bin", ".pt", ".pth", ".pyc"}
    (tmp_path / "here").rename(tmp_path / "gone")  # the model needs nothing of where it was made
    loaded = mlflow.pyfunc.load_model(str(folder))
    ids = [5, 9, 30, 7]
    (answer, reply) = loaded.predict([{"query": "1plus2", "max_new_tokens": 3}, {"token_ids": ids}])
    (tmp_path / "gone").rename(tmp_path / "here")
    with torch.no_grad():
        logits = open_adapter(result.folder).model(input_ids=torch.tensor([ids])).logits[0, -1]
    found = torch.tensor(reply.logits)
    # Weights elsewhere in memory, and plain PEFT on W against the live factors on W_res: float32's rounding.
    torch.testing.assert_close(found, logits, rtol=0, atol=1e-5 * logits.abs().max().item())
    assert isinstance(answer.answer, str)
    assert (answer.logits, reply.answer) == (None, None)
    with pytest.raises(Exception, match="needs query or token_ids"):
        loaded.predict([{"max_new_tokens": 3}])
