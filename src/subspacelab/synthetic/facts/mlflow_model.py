"""The MLflow model of the llm: questions in, answers out (models from code, no pickle)."""

from pathlib import Path

import mlflow
from mlflow.pyfunc import PythonModelContext

from subspacelab.models.generation import greedy_answers
from subspacelab.models.llama import load_llama


class Answerer(mlflow.pyfunc.PythonModel):
    """`predict` answers each question, such as `In which city does Ada Adler live?`, greedily."""

    def load_context(self, context: PythonModelContext) -> None:
        self.model, self.tokenizer = load_llama(Path(context.artifacts["model"]))

    def predict(self, model_input: list[str]) -> list[str]:
        return greedy_answers(self.model, self.tokenizer, model_input, max_new_tokens=16, batch_size=32)


mlflow.models.set_model(Answerer())
