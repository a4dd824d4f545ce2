"""Which tensors are norm layers, told by their names alone, and which store their scale around zero."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

NORM = re.compile(r"norm|layrnorm|^(?:\w+_)?ln\d*(?:_\w+)?$|_(?:bn|rms)$", re.IGNORECASE)
"""The last part of a norm layer's name: also ln_q, ln_f, pre_ln, and CLIP's misspelt pre_layrnorm."""

SCALES = {"weight": "bias", "gamma": "beta"}
"""Leaf name of a scale -> of the bias beside it; the second pair is that of checkpoints from TensorFlow."""

BLOCK = re.compile(r"(?:^|\.)(?:layers?|blocks?|resblocks|h)\.(\d{1,9})(?=\.)")
INNER = ("q_norm", "k_norm", "q_layernorm", "k_layernorm", "q_a_layernorm", "kv_a_layernorm")
"""Norms within an attention: they read projections, not the stream that the embedding begins."""


@dataclass(frozen=True)
class NormName:
    """What the canonical name of a norm layer's scale says."""

    layer: str
    """The name of the layer: without `.weight`."""
    bias: str
    """The name its bias has, if it has one."""
    block: int | None
    """Index of the block it is in; None outside the blocks."""
    kind: str
    """The layer's name with `{}` for the block index: layers of one kind make a curve over depth."""

    @property
    def is_inner(self) -> bool:
        """Whether it lies within an attention."""
        return self.layer.rpartition(".")[2] in INNER

    @property
    def reads_embedding(self) -> bool:
        """Whether it reads the embedding stream at its beginning or end: outside the blocks, or in block 0."""
        return self.block is None or (self.block == 0 and not self.is_inner)


def parse_norm(name: str, num_dims: int) -> NormName | None:
    """The norm layer whose scale is stored as `name`; None for any other tensor.

    A norm's scale is one-dimensional, its leaf is `weight`, and the part before says norm (trailing indices, as in
    `norms.0`, are skipped). What it misses: nameless members of a Sequential, BatchNorms called identity.
    """
    layer, _, leaf = name.rpartition(".")
    if num_dims != 1 or leaf not in SCALES:
        return None
    part = re.sub(r"(?:\.\d+)+$", "", layer).rpartition(".")[2]
    if not NORM.search(part):
        return None
    block, kind = split_block(layer)
    return NormName(layer, f"{layer}.{SCALES[leaf]}", block, kind)


def split_block(name: str) -> tuple[int | None, str]:
    """The index of the block that a name lies in, None outside the blocks, and the name with `{}` in its place."""
    found = BLOCK.search(name)
    if found is None:
        return None, name
    return int(found[1]), f"{name[: found.start(1)]}{{}}{name[found.end(1) :]}"


VISION = r"(?:.*\.)?(?:vision|visual|image|video|audio)\w*\..*"
GATED = VISION + r"|(?:.*\.)?linear_attn\.norm"
ZERO_CENTRED = {
    **dict.fromkeys(("gemma", "gemma2", "gemma3", "gemma3_text", "recurrent_gemma", "vaultgemma"), VISION),
    **dict.fromkeys(("paligemma", "colpali", "shieldgemma2", "pi0"), VISION),
    **dict.fromkeys(("t5gemma", "t5_gemma_module"), VISION),
    **dict.fromkeys(("t5gemma2", "t5gemma2_text", "t5gemma2_encoder", "t5gemma2_decoder"), VISION),
    **dict.fromkeys(("qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"), GATED),
    **dict.fromkeys(("qwen4_exp", "qwen4_exp_text"), GATED),
    **dict.fromkeys(("step3p5", "step3p7", "minimax_m3_vl", "minimax_m3_vl_text"), VISION),
    **dict.fromkeys(("muse_glimmer", "muse_glimmer_text"), VISION + r"|(?:.*\.)?norm"),
    **dict.fromkeys(
        ("muse_spark", "muse_spark_text"), VISION + r"|(?:.*\.)?(?:norm|post_attention_layernorm|post_proj_norm)"
    ),
    **dict.fromkeys(("moonshine_streaming", "moonshine_streaming_encoder"), r"(?:.*\.)?decoder\..*"),
    **dict.fromkeys(("nemotron", "videoprism", "videoprism_text_model", "videoprism_vision_model"), ""),
}
"""`model_type` -> regular expression of the layers of such a model that store the scale itself (read off the classes
of transformers 5.23)."""

AS_STORED = frozenset(
    (
        *("deepseek_v2", "deepseek_v3", "ernie4_5", "exaone4", "glm", "glm4", "glm4_moe", "gpt_oss", "granite"),
        *("granitemoe", "helium", "llama", "llama4", "llama4_text", "ministral", "mistral", "mistral3", "mixtral"),
        *("mllama_text_model", "olmo2", "olmo3", "olmoe", "phi3", "phimoe", "qwen2", "qwen2_5_vl", "qwen2_5_vl_text"),
        *("qwen2_moe", "qwen2_vl", "qwen2_vl_text", "qwen3", "qwen3_moe", "qwen3_vl", "qwen3_vl_text", "smollm3"),
    )
)
"""`model_type` of common families whose norms multiply by what they store, however small (the same classes)."""

LAYER_NORMS = ("nemotron", "videoprism", "videoprism_text_model", "videoprism_vision_model")
"""The families of the table whose zero-centred norms have a bias; the others' are RMSNorms."""

LANGUAGE_SECTIONS = ("text_config", "vlm_config", "llm_config", "language_config")
NEAR_ZERO = 0.1
"""A scale that multiplies as it is begins at 1, and few end below this (SmolLM2's first norm does, at 0.001)."""


def zero_centred_type(config: Mapping[str, Any]) -> str | None:
    """The `model_type` in the table that the language part of a model has, else the whole; None without one."""
    return _type_among(ZERO_CENTRED, config)


def is_known(config: Mapping[str, Any]) -> bool:
    """Whether it is known of the language part of a model, else the whole, what its norms do with what they store."""
    return _type_among([*ZERO_CENTRED, *AS_STORED], config) is not None


def _type_among(table: Collection[str], config: Mapping[str, Any]) -> str | None:
    for section in LANGUAGE_SECTIONS:
        inner = config.get(section)
        if isinstance(inner, Mapping) and isinstance(inner.get("model_type"), str):
            return _type_among(table, inner)
    if config.get("model_type"):
        return next((known for known in table if known == config["model_type"]), None)
    plain = {type_stem(model_type): model_type for model_type in table}
    classes = map(class_stem, config.get("architectures") or ())
    return next((plain[name] for name in classes if name in plain), None)


def class_stem(name: object) -> str:
    """What a class of `architectures` is of: "Gemma3ForCausalLM" -> "gemma3"; the `type_stem` of its model_type."""
    stem = re.sub(r"(?:For[A-Z]\w*|(?:LMHead|Pretrained|PreTrained)?Model)$", "", str(name))
    return stem.replace("_", "").lower()


def type_stem(model_type: str) -> str:
    """A `model_type` without what its classes' names leave out."""
    return re.sub(r"[_-]", "", model_type.removesuffix("_model"))


def is_zero_centred(model_type: str | None, layer: str, norm_type: str) -> bool:
    """Whether the norm `layer` (canonical name) of a model of this type multiplies by 1 + w."""
    if model_type is None or norm_type != ("LayerNorm" if model_type in LAYER_NORMS else "RMSNorm"):
        return False
    return not re.fullmatch(ZERO_CENTRED[model_type], layer)
