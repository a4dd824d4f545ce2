"""ResMLP: residual blocks with layer norm."""

from torch import Tensor, nn

from subspacelab.lowrank.architectures.factors import FactorNet
from subspacelab.lowrank.architectures.linear import Linear
from subspacelab.lowrank.architectures.relu_dropout import ReluDropout

WIDTH, DEPTH = 256, 2


class ResMLP(FactorNet):
    """Row network over tokens, column network over features: linear to 256, two residual blocks, linear to rank."""

    def __init__(self, tokens: int, dim: int, rank: int, *, dropout: float, shortcut: bool) -> None:
        rows, columns = (ResidualStack(width, rank, dropout) for width in (dim, tokens))
        super().__init__(rows, columns, dim, rank, shortcut=shortcut)


class ResidualStack(nn.Sequential):
    """Linear to `WIDTH`, `DEPTH` residual blocks, layer norm, linear to `after`."""

    def __init__(self, before: int, after: int, dropout: float) -> None:
        blocks = [ResidualBlock(WIDTH, dropout) for _ in range(DEPTH)]
        super().__init__(Linear(before, WIDTH), *blocks, nn.LayerNorm(WIDTH), Linear(WIDTH, after))


class ResidualBlock(nn.Module):
    """x + dropout(relu(linear(layer_norm(x))))."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm, self.linear, self.active = nn.LayerNorm(width), Linear(width, width), ReluDropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = self.active(self.linear(self.norm(x)))
        return x + changed
