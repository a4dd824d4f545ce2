"""What can be set for the stages of nullspace."""

from dataclasses import dataclass, field

from subspacelab.core.settings import require_at_least, require_positive


@dataclass(frozen=True)
class BuildSettings:
    """How an adapter is built, whatever its method, rank and seed."""

    calib_dataset: str | None = "wikitext2"
    """Text to calibrate on: wikitext2, c4, ptb, demo:corpus or a file. null: none, for methods that need none."""
    calib_loader_size: int = 256
    """Windows of text, an eighth of which is held out."""
    seq_len: int = 2048
    """Tokens in a window."""
    batch_size: int = 8
    """Windows per pass of the model."""
    targets: list[str] | None = None
    """Regular expressions that find linear layers by name; null takes all but the head."""
    allow_few_tokens: bool = False
    """Build with fewer than 8 tokens per input dimension all the same."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""

    def __post_init__(self) -> None:
        require_at_least(1, self, "calib_loader_size", "seq_len", "batch_size")


@dataclass(frozen=True)
class BuildAdapterConfig(BuildSettings):
    """Stage `build_adapter`: an adapter per method and seed."""

    methods: list[str] = field(default_factory=lambda: ["lora", "lora_null_v2"])
    """Which methods are built; the stage's matrix."""
    rank: int | None = None
    """Rank of the adapters; null takes the rank at the top of params.yaml."""
    seeds: list[int] = field(default_factory=lambda: [233])
    """One adapter for each: it draws the windows and the random starts, later the order of the training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, self, "rank")
        if not self.seeds or not self.methods:
            raise ValueError("seeds and methods must name at least one each")


@dataclass(frozen=True)
class TrainSettings:
    """How an adapter is trained, whatever its method and seed."""

    data: str
    """Rows {query, response}: FILE.jsonl, meta-math/MetaMathQA or demo:arithmetic."""
    epochs: float = 1.0
    """Passes over the rows, where max_steps is null."""
    max_steps: int | None = None
    """Optimizer steps, whatever `epochs` says; null takes the epochs."""
    lr: float = 2e-5
    """AdamW's peak; a cosine brings it to 0."""
    batch_size: int = 8
    """Rows of one pass, over all processes."""
    gradient_accumulation: int = 1
    """Passes per optimizer step."""
    max_length: int = 512
    """Tokens of a row; what is beyond is cut off."""
    warmup_ratio: float = 0.03
    """Share of the steps on which the rate rises."""
    weight_decay: float | None = None
    """AdamW's decoupled weight decay; null takes the method's own (0.3 of lora_decay, else 0)."""
    save_steps: int = 200
    """Steps between checkpoints, from which a killed training goes on."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""

    def __post_init__(self) -> None:
        require_at_least(1, self, "batch_size", "gradient_accumulation", "max_length", "save_steps", "max_steps")
        require_at_least(0, self, "weight_decay")
        require_positive(self, "epochs", "lr")
        if not 0 <= self.warmup_ratio <= 1:
            raise ValueError(f"warmup_ratio must lie in [0, 1], got {self.warmup_ratio}")


@dataclass(frozen=True)
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
    num_windows: int = 16
    """Windows of that text."""
    seq_len: int = 128
    """Tokens per window."""
    max_new_tokens: int = 256
    """Longest answer; none is longer than the longest right one."""
    batch_size: int = 64
    """Questions asked at once."""
    limit: int | None = None
    """Only the first facts and problems; null takes all."""

    def __post_init__(self) -> None:
        require_at_least(1, self, "num_windows", "seq_len", "max_new_tokens", "batch_size", "limit")


@dataclass(frozen=True)
class TrainAdapterConfig(TrainSettings):
    """Stage `train_adapter`: every adapter that was built of one method, and what it then knows."""

    lr_by_method: dict[str, float] = field(default_factory=dict)
    """Learning rates of methods that learn the task at another one than `lr`."""
    rate_factors: list[float] = field(default_factory=lambda: [1.0])
    """Times a method's learning rate: every seed trains at each product, one is chosen on validation problems."""
    knowledge: KnowledgeSettings | None = None
    """How knowledge is measured afterwards; null leaves that out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.rate_factors or min(self.rate_factors) <= 0:
            raise ValueError(f"rate_factors must be at least one number, all above 0, got {self.rate_factors}")
        if len(self.rate_factors) > 1 and self.knowledge is None:
            raise ValueError("rate_factors: knowledge is null, so that there are no problems to choose a rate on")

    def rates(self, method: str) -> list[float]:
        """The learning rates that a method tries, ascending."""
        return sorted({self.lr_by_method.get(method, self.lr) * factor for factor in self.rate_factors})


@dataclass(frozen=True)
class VerifyAdapterConfig:
    """Stage `verify_adapter`: is B still in the null space, and was anything learned?"""

    calib_dataset: str = "wikitext2"
    """The text: wikitext2, c4, ptb, demo:corpus or a file."""
    calib_loader_size: int = 16
    """Windows of it."""
    max_activation_samples: int = 100
    """Tokens per layer that norms are averaged over, drawn evenly from all the windows."""
    seq_len: int = 2048
    """Tokens in a window."""
    batch_size: int = 4
    """Windows per pass of the model."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""

    def __post_init__(self) -> None:
        require_at_least(1, self, "calib_loader_size", "max_activation_samples", "seq_len", "batch_size")


@dataclass(frozen=True)
class CompareStatsConfig:
    """Stage `compare_stats`: every method before and after its training, and what it knows."""

    methods: list[str] = field(default_factory=list)
    """Methods to compare; empty takes those of build_adapter."""
