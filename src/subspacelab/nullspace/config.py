"""Settings of nullspace."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field

from subspacelab.core.settings import Count, NotNegative, Positive, Seed, Share, settings


@settings
class BuildSettings:
    """Settings of a build, except method, rank and seed."""

    calib_dataset: str | None = None
    """Calibration text: wikitext2, c4, ptb, pipeline:corpus or a file. Default: wikitext2 for methods that need
    calibration, none for the others."""
    calib_loader_size: Count = 256
    """Number of windows of text; one eighth of them is held out."""
    seq_len: Count = 2048
    """Tokens per window."""
    batch_size: Count = 8
    """Windows per pass of the model."""
    targets: list[str] | None = None
    """Regular expressions that select linear layers by name; null selects all but the head."""
    allow_few_tokens: bool = False
    """Build even with fewer than 8 tokens per input dimension."""
    offload: Literal["auto", "device", "cpu", "disk"] = "auto"
    """Where hidden states are kept between two blocks; auto takes the first of device, memory and disk that is large
    enough."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""


@settings
class BuildAdapterConfig(BuildSettings):
    """Stage `build_adapter`: one adapter per method and seed."""

    methods: Annotated[list[str], Field(min_length=1)] = field(default_factory=lambda: ["lora", "lora_null_v2"])
    """Methods to build; the stage's matrix."""
    rank: Count | None = None
    """Rank of the adapters; null takes the rank at the top of params.yaml."""
    seeds: Annotated[list[int], Field(min_length=1)] = field(default_factory=lambda: [233])
    """One adapter per seed. The seed determines the windows, the random starts and, later, the order of the
    training."""


@settings
class TrainSettings:
    """Settings of a training, except method and seed."""

    data: str
    """Rows {query, response}: FILE.jsonl, meta-math/MetaMathQA or pipeline:arithmetic."""
    epochs: Positive = 1.0
    """Passes over the rows; used if max_steps is null."""
    max_steps: Count | None = None
    """Number of optimizer steps, in place of `epochs`; null uses the epochs."""
    lr: Positive = 2e-5
    """Peak learning rate of AdamW; a cosine schedule lowers it to 0."""
    batch_size: Count = 8
    """Rows per forward pass, over all processes."""
    gradient_accumulation: Count = 1
    """Forward passes per optimizer step."""
    max_length: Count = 512
    """Tokens per row; longer rows are cut."""
    warmup_ratio: Share = 0.03
    """Share of the steps during which the learning rate rises."""
    weight_decay: NotNegative | None = None
    """Decoupled weight decay of AdamW; null uses the method's own (0.3 for lora_decay, else 0)."""
    save_steps: Count = 200
    """Steps between checkpoints; a killed training continues from the last one."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass instead of keeping them: less memory, about a third slower."""
    fsdp: bool = False
    """Spread the frozen base over the processes of `accelerate launch`, so that each holds a part of every weight. For
    a base too large for one GPU, with a method that leaves its weights unchanged. A killed training starts again."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""


@settings
class KnowledgeSettings:
    """How old and new knowledge is measured."""

    facts: str
    """Rows {query, response} that the base was trained on."""
    task: str
    """Rows {query, response} of the new task that were not used in training."""
    validation: str
    """Further rows of the new task, used to choose a learning rate."""
    text: str
    """Old text. Its test part measures the drift of the activations. Its train part is the calibration text; a fact
    whose question is in it counts as calibrated."""
    num_windows: Count = 16
    """Number of windows of that text."""
    seq_len: Count = 128
    """Tokens per window."""
    max_new_tokens: Count = 256
    """Longest answer in tokens; no answer is longer than the longest correct one."""
    batch_size: Count = 64
    """Questions per batch."""
    limit: Count | None = None
    """Use only the first facts and problems; null uses all."""


@settings
class TrainAdapterConfig(TrainSettings):
    """Stage `train_adapter`: trains every adapter of one method, and measures what it then knows."""

    lr_by_method: dict[str, Positive] = field(default_factory=dict)
    """Learning rates of methods that need another one than `lr`."""
    rate_factors: Annotated[list[Positive], Field(min_length=1)] = field(default_factory=lambda: [1.0])
    """Factors of a method's learning rate: every seed is trained at each product, and validation problems choose
    one."""
    knowledge: KnowledgeSettings | None = None
    """How knowledge is measured after training; null skips this."""

    def __post_init__(self) -> None:
        if len(self.rate_factors) > 1 and self.knowledge is None:
            raise ValueError("rate_factors: knowledge is null, so that there are no problems to choose a rate on")


@settings
class VerifyAdapterConfig:
    """Stage `verify_adapter`: is B still in the null space, and was anything learned?"""

    calib_dataset: str = "wikitext2"
    """Text: wikitext2, c4, ptb, pipeline:corpus or a file."""
    calib_loader_size: Count = 16
    """Number of windows of text."""
    max_activation_samples: Count = 100
    """Tokens per layer over which norms are averaged, drawn evenly from all windows."""
    seq_len: Count = 2048
    """Tokens per window."""
    batch_size: Count = 4
    """Windows per pass of the model."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""


@settings
class CompareStatsConfig:
    """Stage `compare_stats`: every method before and after training, and what it knows."""

    methods: list[str] = field(default_factory=list)
    """Methods to compare; empty means those of build_adapter."""


@settings
class ForgettingSettings:
    """What fine-tuned language models forget: which methods, on what task, how long and judged by how much."""

    methods: Annotated[list[str], Field(min_length=1)] = field(
        default_factory=lambda: ["lora", "lora_mlp", "lora_null_v2", "frozen_random"]
    )
    """Which methods train; `docs/forgetting.md` lists them."""
    seeds: Annotated[list[Seed], Field(min_length=1)] = field(default_factory=lambda: [233, 234, 235])
    """Of starts and of the order of the rows; on the first one the learning rates are chosen."""
    rate_factors: Annotated[list[Positive], Field(min_length=1)] = field(default_factory=lambda: [1.0, 0.4, 2.5])
    """Times a method's own learning rate: at each product it trains on the first seed."""
    rate_by_method: dict[str, Positive] = field(default_factory=dict)
    """Middle learning rates of methods, in place of their own."""
    rank: Count = 32
    """Rank of the adapters, but for methods that have their own; the block width of OFT."""
    task: Literal["sums", "words"] = "words"
    """The new task: sentences in a made-up language, or worked sums."""
    task_seed: Seed = 233
    """Draws its problems and the windows of held-out English."""
    steps: Count = 96
    """Optimizer steps of a training."""
    batch_size: Count = 16
    """Rows of a step."""
    max_length: Count = 256
    """Tokens of a row; what is beyond is cut off."""
    warmup_ratio: Share = 0.1
    """Share of the steps on which the rate rises; a cosine then brings it to 0."""
    kl_weight: Positive = 1.0
    """Times the divergence from the base in the loss of lora_kl."""
    num_validation: Count = 80
    """Problems that learning rates are chosen on."""
    num_test: Count = 120
    """Problems that the new task is scored on."""
    max_probes: Count | None = 120
    """Old questions that are asked, of those that the base knows; null asks all."""
    num_windows: Count = 8
    """Windows of held-out English."""
    seq_len: Count = 128
    """Tokens in one of them."""
    score_batch_size: Count = 64
    """Prompts scored at once."""
    calib_loader_size: Count = 128
    """Windows of calibration text, an eighth of which is held out."""
    calib_seq_len: Count = 256
    """Tokens in one of them."""
    allow_few_tokens: bool = False
    """Calibrate on fewer than 8 tokens per input dimension all the same."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the base's weights; what is put on them is float32."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""


@settings
class MeasureForgettingConfig(ForgettingSettings):
    """Stage `measure_forgetting`: as `nullspace forgetting`, on the study's llm."""

    methods: list[str] = field(default_factory=list)
    """Which methods train; none, as in demo: nothing is measured."""


STAGES = {
    "build_adapter": BuildAdapterConfig,
    "train_adapter": TrainAdapterConfig,
    "verify_adapter": VerifyAdapterConfig,
    "compare_stats": CompareStatsConfig,
    "measure_forgetting": MeasureForgettingConfig,
}
"""Stage -> class of its settings in params.yaml and in a study."""
