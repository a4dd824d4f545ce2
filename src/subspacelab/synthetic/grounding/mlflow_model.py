"""The MLflow model of a grounding checkpoint: pictures and questions in, boxes out (models from code, no pickle)."""

import io
from pathlib import Path

import mlflow
import numpy as np
import torch
from mlflow.pyfunc import PythonModelContext
from PIL import Image
from pydantic import BaseModel

from subspacelab.synthetic.grounding.model import GroundingModel, decode_boxes, encode_prompts

SIZE = 224  # pixels: the size that the demo checkpoints are trained at


class Asked(BaseModel):
    """A question about a picture."""

    image: bytes
    """An encoded picture (PNG, JPEG, ...)."""
    question: str
    """The question, such as `Where is the red word?`"""


class Grounder(mlflow.pyfunc.PythonModel):
    """`predict` answers each question with a box x, y, width, height, as shares of the picture's sides."""

    def load_context(self, context: PythonModelContext) -> None:
        self.checkpoint = GroundingModel.load(Path(context.artifacts["model"]))

    def predict(self, model_input: list[Asked]) -> list[list[float]]:
        model, tokenizer = self.checkpoint.model, self.checkpoint.tokenizer
        pictures = [Image.open(io.BytesIO(asked.image)).convert("RGB").resize((SIZE, SIZE)) for asked in model_input]
        images = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
        batch = encode_prompts(tokenizer, images, [asked.question for asked in model_input])
        boxes = decode_boxes(model, tokenizer, batch, size=SIZE).boxes / SIZE
        return [[float(v) for v in box] for box in boxes]


mlflow.models.set_model(Grounder())
