"""One normalisation of the features, stored with the model and used wherever the model is."""

from dataclasses import dataclass
from typing import Annotated, Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

Kind = Literal["rms", "layernorm", "none"]


@dataclass(frozen=True)
class Normalisation:
    """How raw features become what networks are trained on and compared on."""

    kind: Kind = "none"
    """rms: all features by one number, which changes neither ranks nor cosines; layernorm: each token; none."""
    scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """The root mean square of the training features, for rms; else 1."""

    def apply(self, raw: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Normalised features."""
        if self.kind == "layernorm":
            return F.layer_norm(raw, raw.shape[-1:])
        return raw / self.scale

    def undo(self, normalised: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Back to the raw scale; layernorm's lost means and deviations stay lost."""
        return normalised * self.scale
