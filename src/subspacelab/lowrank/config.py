"""Settings of lowrank."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field

from subspacelab.core.settings import Count, Natural, NotNegative, Positive, settings

PowerSteps = Annotated[int, Field(ge=0, le=1000)]
"""A larger number only costs time: a sketch converges after a few dozen steps."""
Format = Literal["float32", "float16", "bfloat16", "int8", "int4", "pruned"]
"""In which A and B are stored; float32 is as they are computed."""
RANKS = (8, 16, 32, 64, 128, 256)
"""Of the curves over the rank."""


@settings
class CacheFeaturesConfig:
    """`cache`: the vision tower's merged tokens of every picture."""

    images: str
    """Pictures: a parquet file or folder (textVQA_groundingtask_bbox), a .jsonl, a folder of pictures, or a data set on
    the hub."""
    image_size: Count = 448
    """Pixels per side; a multiple of 28. 448 gives 256 tokens."""
    limit: Count | None = None
    """Use only the first pictures; default: all."""
    batch_size: Count = 8
    """Pictures per pass of the tower."""
    decode_workers: Annotated[int, Field(ge=0, le=256)] | None = None
    """Processes that decode pictures while the tower computes, 0 for none; default: one for each free core."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""


@settings
class AllocatorConfig:
    """AdaLoRA's rank allocator (arXiv 2303.10512); steps are optimizer steps."""

    init_warmup: Natural = 1000
    """Steps before anything is masked."""
    final_warmup: Natural = 1000
    """Last steps, at the final budget and with fixed scores."""
    mask_interval: Count = 20
    """Steps between masks while the budget falls to its final value."""
    keep_ratio: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Share of the rank that is kept; 1 masks nothing."""


@settings
class TrainLowrankConfig:
    """`train`: one network that factorises X into A [tokens, rank] and B [rank, dim]."""

    batch_size: Count = 8
    """Pictures per step, over all processes."""
    epochs: Count = 20
    """Passes over the training pictures; with --resume, additional passes."""
    lr: Positive = 1e-4
    """Initial learning rate of AdamW; halved when the validation MSE stops falling."""
    lambda_B: NotNegative = 1e-4
    """Weight of mean(B^2)."""
    lambda_ortho: NotNegative = 1e-3
    """Weight of ||A_n^T A_n - I||_F^2 / rank^2, A_n with columns of length 1."""
    weight_decay: NotNegative = 1e-5
    """Decoupled weight decay of AdamW."""
    patience: Count = 10
    """Epochs without a better validation MSE before the training stops."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Dropout in the networks' hidden layers."""
    clip: Positive = 5.0
    """Largest gradient norm."""
    start: Literal["pca", "random"] = "pca"
    """pca: linear shortcuts beside the networks start at the training pictures' PCA basis; random: plain networks."""
    normalisation: Literal["rms", "layernorm", "none"] = "rms"
    """Normalisation of the features in training, comparison and pictures: one scale for all, per token, or none."""
    refine: bool = False
    """Ablation: a full [dim, dim] layer after A @ B. The result no longer has rank r."""
    power_steps: PowerSteps = 2
    """Sketch: number of times that X X^T is applied to the sketch."""
    orth_reg_weight: NotNegative = 0.1
    """AdaLoRA: weight of the orthogonality of every lora_A and lora_B."""
    activation_orth_weight: NotNegative = 0.0
    """AdaLoRA: weight of the orthogonality of A itself, in units of lambda_ortho's term."""
    use_rank_allocator: bool = False
    """AdaLoRA: let the allocator remove columns of A by their importance."""
    allocator: AllocatorConfig = field(default_factory=AllocatorConfig)
    """AdaLoRA: the allocator's settings."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    compile: bool = True
    """torch.compile on a GPU; the CPU never compiles."""


@settings
class ContinueLowrankConfig:
    """Stage `continue_lowrank`: more epochs from the best model of `train_lowrank`."""

    epochs: Natural = 0
    """Additional epochs; 0 copies the trained model unchanged."""


@settings
class CompareLowrankConfig:
    """`compare`: the networks compared with the SVD, controls and their untrained start, on the test pictures."""

    raw_inputs: bool = False
    """Ablation: compare on raw features, whatever the networks were trained on."""
    judge: str | None = None
    """A Qwen2.5-VL whose language model reads the approximated tokens: their IoU is measured; none by default."""
    images: str | None = None
    """What the judge is asked: the parquet data set with questions and boxes that was cached."""
    judge_size: Count | None = None
    """Pixels per side that the judge was trained at, if less than those of the features: the positions of their tokens
    are interpolated (arXiv 2306.15595)."""
    judged_formats: list[Format] | None = None
    """Formats of storage whose IoU is measured, beside float32; all by default. The cosine is measured in all."""
    ranks: list[Count] | None = None
    """At which SVD and controls are stored and judged, beside that of the networks; 8, 16, ... 256 by default."""
    device: str = "auto"
    """auto, cpu, cuda or mps; mps means the CPU, since the SVD needs float64."""


@settings
class VisualizeLowrankConfig:
    """`visualize`: maps of channels and errors on the picture plane."""

    image_idx: Natural = 0
    """Index of the test picture, from 0."""
    channels: Count = 8
    """Number of channels, from the first."""
    device: str = "auto"
    """auto, cpu, cuda or mps; mps means the CPU, since the SVD needs float64."""


STAGES = {
    "cache_features": CacheFeaturesConfig,
    "train_lowrank": TrainLowrankConfig,
    "continue_lowrank": ContinueLowrankConfig,
    "compare_lowrank": CompareLowrankConfig,
    "visualize_lowrank": VisualizeLowrankConfig,
}
"""Stage -> class of its settings in params.yaml and in a study."""
