"""What can be set for the stages of lowrank."""

from dataclasses import dataclass, field
from typing import Literal

from subspacelab.core.settings import require_at_least, require_positive

MAX_POWER_STEPS = 1000
"""More cost time and nothing else: what a sketch finds has converged after some dozens."""


@dataclass(frozen=True)
class CacheFeaturesConfig:
    """Stage `cache_features`: the vision tower's merged tokens of every picture."""

    images: str
    """A parquet file or folder, a .jsonl, or a folder of pictures."""
    image_size: int
    """Pixels per side; a multiple of 28. 448 gives 256 tokens."""
    limit: int | None
    """Only the first pictures; null takes all."""
    batch_size: int
    """Pictures per pass of the tower."""
    device: str
    """auto, cpu, cuda or mps."""


@dataclass(frozen=True)
class AllocatorConfig:
    """AdaLoRA's rank allocator (arXiv 2303.10512); steps are optimizer steps."""

    init_warmup: int = 1000
    """Steps before anything is masked."""
    final_warmup: int = 1000
    """Last steps, at the final budget and with frozen scores."""
    mask_interval: int = 20
    """Steps between masks on the way from the full to the final budget."""
    keep_ratio: float = 0.25
    """Share of the rank that stays; 1 masks nothing."""

    def __post_init__(self) -> None:
        if not 0 < self.keep_ratio <= 1:
            raise ValueError(f"keep_ratio must be above 0 and at most 1, got {self.keep_ratio}")
        require_at_least(0, self, "init_warmup", "final_warmup")
        require_at_least(1, self, "mask_interval")


@dataclass(frozen=True)
class TrainLowrankConfig:
    """Stage `train_lowrank`: one network that factorises X into A [tokens, rank] and B [rank, dim]."""

    batch_size: int = 8
    """Pictures per step, over all processes."""
    epochs: int = 20
    """Passes over the training pictures."""
    lr: float = 1e-4
    """AdamW's learning rate at the start."""
    lambda_B: float = 1e-4
    """Weight of mean(B^2)."""
    lambda_ortho: float = 1e-3
    """Weight of ||A_n^T A_n - I||_F^2 / rank^2, A_n with columns of length 1."""
    weight_decay: float = 1e-5
    """AdamW's decoupled weight decay."""
    patience: int = 10
    """Epochs without a better validation MSE before the training stops."""
    dropout: float = 0.1
    """Dropout in the networks' hidden layers."""
    clip: float = 5.0
    """Largest gradient norm."""
    start: Literal["pca", "random"] = "pca"
    """pca: linear shortcuts beside the networks start at the training pictures' PCA basis; random: plain networks."""
    normalisation: Literal["rms", "layernorm", "none"] = "rms"
    """Of the features, in training, comparison and pictures alike: one scale for all, per token, or none."""
    refine: bool = False
    """Ablation: a full [dim, dim] layer after A @ B. The result is no longer of rank r."""
    power_steps: int = 2
    """Sketch: times that X X^T is applied to the sketch."""
    orth_reg_weight: float = 0.1
    """AdaLoRA: weight of the orthogonality of every lora_A and lora_B."""
    activation_orth_weight: float = 0.0
    """AdaLoRA: weight of the orthogonality of A itself, in units of lambda_ortho's term."""
    use_rank_allocator: bool = False
    """AdaLoRA: let the allocator take columns of A out."""
    allocator: AllocatorConfig = field(default_factory=AllocatorConfig)
    """AdaLoRA: its settings."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    compile: bool = True
    """torch.compile on a GPU; the CPU never compiles."""

    def __post_init__(self) -> None:
        require_at_least(1, self, "batch_size", "epochs", "patience")
        if not 0 <= self.power_steps <= MAX_POWER_STEPS:
            raise ValueError(f"power_steps must be at least 0 and at most {MAX_POWER_STEPS}, got {self.power_steps}")
        require_positive(self, "lr", "clip")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")


@dataclass(frozen=True)
class ContinueLowrankConfig:
    """Stage `continue_lowrank`: more epochs from the best model of `train_lowrank`."""

    epochs: int
    """Additional epochs; 0 hands the trained model on as it is."""

    def __post_init__(self) -> None:
        require_at_least(0, self, "epochs")


@dataclass(frozen=True)
class CompareLowrankConfig:
    """Stage `compare_lowrank`: the networks against the SVD, controls and their own start, on the test pictures."""

    raw_inputs: bool
    """Ablation: compare on raw features, whatever the networks were trained on."""


@dataclass(frozen=True)
class VisualizeLowrankConfig:
    """Stage `visualize_lowrank`: maps of channels and errors on the picture's plane."""

    image_idx: int
    """Which of the test pictures."""
    channels: int
    """How many channels, from the first."""
