"""The MLflow model of a trained adapter: prompts in, next-token logits and answers out (no pickle)."""

from pathlib import Path

import mlflow
import torch
from mlflow.pyfunc import PythonModelContext
from pydantic import BaseModel

from subspacelab.checkpoints import resolve_reference
from subspacelab.models.causal_lm import load_tokenizer
from subspacelab.models.generation import greedy_answers
from subspacelab.models.lora_model import load_plain
from subspacelab.nullspace.paths import SERVED_ADAPTER, SERVED_BASE


class Prompt(BaseModel):
    """A question in words, or token ids: exactly one of the two."""

    query: str | None = None
    """A question; it is answered greedily, in the prompt format of the training."""
    token_ids: list[int] | None = None
    """Token ids; the logits of the next token are returned."""
    max_new_tokens: int = 64
    """Longest answer in tokens."""


class Reply(BaseModel):
    """The model's reply to one prompt."""

    answer: str | None = None
    """Answer to a query."""
    logits: list[float] | None = None
    """Logits after token ids, one per entry of the vocabulary."""


class AdaptedModel(mlflow.pyfunc.PythonModel):
    """`predict` answers each prompt, on the CPU."""

    def load_context(self, context: PythonModelContext) -> None:
        folder = Path(context.artifacts["model"])
        base = resolve_reference(str(folder / SERVED_BASE)).folder
        self.model = load_plain(base, folder / SERVED_ADAPTER, device=torch.device("cpu"))
        self.tokenizer = load_tokenizer(base)

    def predict(self, model_input: list[Prompt]) -> list[Reply]:
        return [self._reply(prompt) for prompt in model_input]

    @torch.inference_mode()
    def _reply(self, prompt: Prompt) -> Reply:
        if prompt.token_ids is not None:
            ids = torch.tensor([prompt.token_ids])
            return Reply(logits=self.model(input_ids=ids, use_cache=False).logits[0, -1].float().tolist())
        if prompt.query is None:
            raise ValueError("a prompt needs query or token_ids; give one of them")
        answers = greedy_answers(
            self.model, self.tokenizer, [prompt.query], max_new_tokens=prompt.max_new_tokens, batch_size=1
        )
        return Reply(answer=answers[0])


mlflow.models.set_model(AdaptedModel())
