"""A model goes in as files and code, and comes out as a function, without a pickle on the way."""

import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from subspacelab.tracking import ModelFiles, open_run

_CODE = """
import mlflow
from safetensors.numpy import load_file

class Scale(mlflow.pyfunc.PythonModel):
    def load_context(self, context):
        self.scale = float(load_file(context.artifacts["model"] + "/model.safetensors")["scale"][0])

    def predict(self, model_input: list[float]) -> list[float]:
        return [x * self.scale for x in model_input]

mlflow.models.set_model(Scale())
"""


def _model(root: Path, **given) -> ModelFiles:
    (root / "files").mkdir()
    save_file({"scale": np.array([3.0], dtype=np.float32)}, root / "files" / "model.safetensors")
    (root / "scale.py").write_text(_CODE)
    return ModelFiles("scale", root / "files", root / "scale.py", ["safetensors"], **given)


@pytest.mark.slow
def test_model_round_trip(place):
    import mlflow

    model = _model(place.root, params={"train": {"lr": 0.1}}, metrics={"iou": 0.5}, step=3, registered="scale")
    with open_run("demo", "train", params={"rank": 8}) as tracker:
        tracker.log_metrics({"iou": 0.1}, 1)
        tracker.log_model(model)
    (run,) = place.runs("demo")
    assert run.info.status == "FINISHED"
    (logged,) = place.client().search_logged_models([run.info.experiment_id])
    assert (logged.name, logged.source_run_id, str(logged.status)) == ("scale", run.info.run_id, "READY")
    assert logged.params == {"train.lr": "0.1"}
    assert [(m.key, m.value, m.step) for m in logged.metrics] == [("iou", 0.5, 3)]
    assert run.data.metrics == {"iou": 0.5}
    folder = place.root / "mlruns" / "artifacts" / "models" / logged.model_id / "artifacts"
    suffixes = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert ".safetensors" in suffixes
    assert not suffixes & {".pkl", ".pickle", ".pt", ".pyc"}
    assert (folder / "requirements.txt").read_text().split()[1:] == ["safetensors"]  # after mlflow itself
    loaded = mlflow.pyfunc.load_model(str(folder))
    assert loaded.predict([1.0, 2.0]) == [3.0, 6.0]
    assert loaded.metadata.signature.inputs.to_dict()[0]["type"] == "double"
    mlflow.set_tracking_uri(place.uri)
    assert mlflow.pyfunc.load_model("models:/scale@latest").predict([1.0]) == [3.0]
    mlflow.set_tracking_uri(None)
    assert "MLFLOW_TRACKING_URI" not in os.environ  # the process's own MLflow settings are as before


def test_broken_model_code_does_not_stop_the_work(place, capsys):
    model = _model(place.root)
    model.code.write_text("raise RuntimeError('broken')")
    with open_run("demo", "train", params={}) as tracker:
        tracker.log_model(model)
        tracker.log_metrics({"iou": 0.5})
    (run,) = place.runs("demo")
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"iou": 0.5})
    assert "broken" in capsys.readouterr().err
