"""What 3B, 7B and 72B models take of memory, disk and minutes, by command: the table of docs/scale.md.

Computed from shapes by the formulas below; nothing is run. A machine is what it does per second: 2 cores as measured
(809 s for the matrices of Qwen2.5-VL-3B, benchmarks/results/svd_methods-2026-11-22.csv), 16 cores as 8 times that, an
H100 as assumed until benchmarks/gpu.py has run on one.

    python benchmarks/scale_table.py
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass

GB, TOKENS, RANK = 1e9, 256 * 2048, 128
"""Calibration tokens of `nullspace build`, and the rank of its adapters: the defaults."""
ROWS, LENGTH, BATCH = 100_000, 256, 8
"""Rows of a training, their tokens, and rows of a pass."""
MEASURED_SECONDS = 809.0
SYEVD = 9
"""Operations of `eigh` with vectors over n^3 (Golub & Van Loan, Matrix Computations, 8.3)."""


@dataclass(frozen=True)
class Model:
    """The shapes of a language model, and of a vision tower where there is one."""

    name: str
    layers: int
    width: int
    inner: int
    keys: int
    vocabulary: int
    tied: bool
    tower: tuple[int, int, int] | None = None

    def block(self) -> list[tuple[int, int]]:
        """[out, in] of the linear layers of a block."""
        w, i, k = self.width, self.inner, self.keys
        return [(w, w), (k, w), (k, w), (w, w), (i, w), (i, w), (w, i)]

    def matrices(self) -> list[tuple[int, int]]:
        """Of the whole model."""
        found = self.layers * self.block() + (1 if self.tied else 2) * [(self.vocabulary, self.width)]
        if self.tower is not None:
            depth, w, i = self.tower
            found += depth * [(3 * w, w), (w, w), (i, w), (i, w), (w, i)] + [(4 * w, 4 * w), (self.width, 4 * w)]
        return found

    def parameters(self) -> int:
        """Entries of all matrices."""
        return sum(m * n for m, n in self.matrices())


MODELS = (
    Model("Qwen2.5-VL-3B", 36, 2048, 11008, 256, 151936, True, (32, 1280, 3420)),
    Model("Llama-2-7B", 32, 4096, 11008, 4096, 32000, False),
    Model("Qwen2.5-72B", 80, 8192, 29568, 1024, 152064, False),
)


def svd_operations(model: Model) -> float:
    """Gram matrix, `eigh`, the other factor: 4 L s^2 + 9 s^3 for a long side L and a short side s, float64."""
    return sum(4 * max(x) * min(x) ** 2 + SYEVD * min(x) ** 3 for x in model.matrices())


FLOAT64 = svd_operations(MODELS[0]) / MEASURED_SECONDS
MACHINES = {"2 cores": (FLOAT64, 3 * FLOAT64), "16 cores": (8 * FLOAT64, 24 * FLOAT64), "one H100": (1e13, 3e14)}
"""Operations a second in float64 and in the model's own dtype."""


def decompose(model: Model) -> tuple[float, float, float, float]:
    """Three times the largest matrix in float32; all factors in float32."""
    factors = sum(4 * min(x) * (sum(x) + 1) for x in model.matrices())
    return 3 * 4 * max(m * n for m, n in model.matrices()), factors, svd_operations(model), 0.0


def build(model: Model) -> tuple[float, float, float, float]:
    """A block, two halves and a held-out moment of each of its inputs in float64, and every token's hidden state."""
    widths = [model.width] * 3 + [model.inner]
    block = 2 * sum(m * n for m, n in model.block())
    memory = block + 3 * 8 * sum(d**2 for d in widths) + 2 * TOKENS * model.width
    adapters = model.layers * sum(4 * RANK * (m + n) for m, n in model.block())
    # Null space, both halves and the held-out part: four `eigh` for each input.
    solved = model.layers * sum(2 * TOKENS * d**2 + 4 * SYEVD * d**3 for d in widths)
    return memory, adapters, solved, 2.0 * model.parameters() * TOKENS


def train(model: Model) -> tuple[float, float, float, float]:
    """The base in bfloat16, the adapter with AdamW's moments, one hidden state a block (--gradient-checkpointing)."""
    factors = [(16 * RANK * m, 4 * RANK * n) for m, n in model.layers * model.block()]
    activations = BATCH * LENGTH * (2 * model.width * model.layers + 8 * model.vocabulary)
    memory = 2 * model.parameters() + sum(map(sum, factors)) + activations
    disk = model.layers * sum(4 * RANK * (m + n) for m, n in model.block())
    return memory, disk, 0.0, 6.0 * model.parameters() * ROWS * LENGTH


COMMANDS: dict[str, Callable[[Model], tuple[float, float, float, float]]] = {
    "rotation decompose": decompose,
    "nullspace build": build,
    "nullspace train": train,
}
"""Name -> bytes of memory, bytes on disk, operations in float64 and in the model's dtype."""


def table() -> str:
    """Markdown."""
    lines = [f"| model | command | memory | disk | {' | '.join(MACHINES)} |", "|---" * (4 + len(MACHINES)) + "|"]
    for model in MODELS:
        for name, needs in COMMANDS.items():
            memory, disk, wide, own = needs(model)
            minutes = [_shown((wide / rates[0] + own / rates[1]) / 60) for rates in MACHINES.values()]
            row = [model.name, f"`{name}`", f"{memory / GB:.1f} GB", f"{disk / GB:.1f} GB", *minutes]
            lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def _shown(minutes: float) -> str:
    if minutes < 100:
        return f"{minutes:.2g} min"
    return f"{minutes / 60:.0f} h" if minutes < 100 * 60 else f"{minutes / 1440:.0f} days"


if __name__ == "__main__":
    print(table())
    sys.exit(0)
