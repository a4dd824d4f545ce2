"""What can be set in nullspace."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field

from subspacelab.core.settings import Count, NotNegative, Positive, Seed, Share, settings


@settings
class BuildSettings:
    """How an adapter is built, whatever its method, rank and seed."""

    calib_dataset: str | None = None
    """Text to calibrate on: wikitext2, c4, ptb, pipeline:corpus or a file; by default wikitext2, for methods that start
    from it, and none for the others."""
    calib_loader_size: Count = 256
    """Windows of text, an eighth of which is held out."""
    seq_len: Count = 2048
    """Tokens in a window."""
    batch_size: Count = 8
    """Windows per pass of the model."""
    targets: list[str] | None = None
    """Regular expressions that find linear layers by name; null takes all but the head."""
    allow_few_tokens: bool = False
    """Build with fewer than 8 tokens per input dimension all the same."""
    offload: Literal["auto", "device", "cpu", "disk"] = "auto"
    """Where hidden states wait between two blocks: auto takes the device, memory or disk, the first with room."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""


@settings
class BuildAdapterConfig(BuildSettings):
    """Stage `build_adapter`: an adapter per method and seed."""

    methods: Annotated[list[str], Field(min_length=1)] = field(default_factory=lambda: ["lora", "lora_null_v2"])
    """Which methods are built; the stage's matrix."""
    rank: Count | None = None
    """Rank of the adapters; null takes the rank at the top of params.yaml."""
    seeds: Annotated[list[int], Field(min_length=1)] = field(default_factory=lambda: [233])
    """One adapter for each: it draws the windows and the random starts, later the order of the training."""


@settings
class TrainSettings:
    """How an adapter is trained, whatever its method and seed."""

    data: str
    """Rows {query, response}: FILE.jsonl, meta-math/MetaMathQA or pipeline:arithmetic."""
    epochs: Positive = 1.0
    """Passes over the rows, where max_steps is null."""
    max_steps: Count | None = None
    """Optimizer steps, whatever `epochs` says; null takes the epochs."""
    lr: Positive = 2e-5
    """AdamW's peak; a cosine brings it to 0."""
    batch_size: Count = 8
    """Rows of one pass, over all processes."""
    gradient_accumulation: Count = 1
    """Passes per optimizer step."""
    max_length: Count = 512
    """Tokens of a row; what is beyond is cut off."""
    warmup_ratio: Share = 0.03
    """Share of the steps on which the rate rises."""
    weight_decay: NotNegative | None = None
    """AdamW's decoupled weight decay; null takes the method's own (0.3 of lora_decay, else 0)."""
    save_steps: Count = 200
    """Steps between checkpoints, from which a killed training goes on."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, about a third slower."""
    fsdp: bool = False
    """Spread the frozen base over the processes of `accelerate launch`, each with its part of every weight: for a base
    too large for one GPU, with a method that leaves its weights as they are. A killed training begins anew."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""


@settings
class KnowledgeSettings:
    """By what old and new knowledge are told."""

    facts: str
    """Rows {query, response} that the base was taught."""
    task: str
    """Rows {query, response} of the new task that were not trained on."""
    validation: str
    """Other such rows, by which a learning rate is chosen."""
    text: str
    """Old text. The drift of the activations is measured on its test part; its train part, the calibration text,
    tells the facts that it asks from those that it does not."""
    num_windows: Count = 16
    """Windows of that text."""
    seq_len: Count = 128
    """Tokens per window."""
    max_new_tokens: Count = 256
    """Longest answer; none is longer than the longest right one."""
    batch_size: Count = 64
    """Questions asked at once."""
    limit: Count | None = None
    """Only the first facts and problems; null takes all."""


@settings
class TrainAdapterConfig(TrainSettings):
    """Stage `train_adapter`: every adapter that was built of one method, and what it then knows."""

    lr_by_method: dict[str, Positive] = field(default_factory=dict)
    """Learning rates of methods that learn the task at another one than `lr`."""
    rate_factors: Annotated[list[Positive], Field(min_length=1)] = field(default_factory=lambda: [1.0])
    """Times a method's learning rate: every seed trains at each product, one is chosen on validation problems."""
    knowledge: KnowledgeSettings | None = None
    """How knowledge is measured afterwards; null leaves that out."""

    def __post_init__(self) -> None:
        if len(self.rate_factors) > 1 and self.knowledge is None:
            raise ValueError("rate_factors: knowledge is null, so that there are no problems to choose a rate on")


@settings
class VerifyAdapterConfig:
    """Stage `verify_adapter`: is B still in the null space, and was anything learned?"""

    calib_dataset: str = "wikitext2"
    """The text: wikitext2, c4, ptb, pipeline:corpus or a file."""
    calib_loader_size: Count = 16
    """Windows of it."""
    max_activation_samples: Count = 100
    """Tokens per layer that norms are averaged over, drawn evenly from all the windows."""
    seq_len: Count = 2048
    """Tokens in a window."""
    batch_size: Count = 4
    """Windows per pass of the model."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""


@settings
class CompareStatsConfig:
    """Stage `compare_stats`: every method before and after its training, and what it knows."""

    methods: list[str] = field(default_factory=list)
    """Methods to compare; empty takes those of build_adapter."""


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


STAGES = {
    "build_adapter": BuildAdapterConfig,
    "train_adapter": TrainAdapterConfig,
    "verify_adapter": VerifyAdapterConfig,
    "compare_stats": CompareStatsConfig,
}
"""Stage to what can be set for it in params.yaml and in a study."""
