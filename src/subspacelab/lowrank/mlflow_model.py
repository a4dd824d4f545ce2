"""The MLflow model of a trained network: features in, their rank-r reconstruction out (no pickle)."""

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch
from mlflow.pyfunc import PythonModelContext

from subspacelab.lowrank.state import load_model


class Reconstructor(mlflow.pyfunc.PythonModel):
    """`predict` takes features [n, tokens, dim] and returns their approximation, of the same shape, in float32."""

    def load_context(self, context: PythonModelContext) -> None:
        self.model = load_model(Path(context.artifacts["model"])).network

    def predict(
        self, context: PythonModelContext, model_input: np.ndarray, params: dict[str, Any] | None = None
    ) -> np.ndarray:
        with torch.inference_mode():
            raw = torch.from_numpy(np.array(model_input, dtype=np.float32))
            approximation: np.ndarray = self.model.reconstruct(raw).numpy()
        return approximation


mlflow.models.set_model(Reconstructor())
