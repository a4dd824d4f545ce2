"""Norm layers recognised by the names of their tensors, and models that store the scale around zero."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

NORM = re.compile(r"norm|layrnorm|^(?:\w+_)?ln\d*(?:_\w+)?$|_(?:bn|rms)$", re.IGNORECASE)
"""Last part of a norm layer's name; also ln_q, ln_f, pre_ln, and CLIP's misspelt pre_layrnorm."""

SCALES = {"weight": "bias", "gamma": "beta"}
"""Last part of a scale's name -> last part of its bias's name; the second pair comes from TensorFlow checkpoints."""

BLOCK = re.compile(r"(?:^|\.)(?:layers?|blocks?|resblocks|h)\.(\d{1,9})(?=\.)")
INNER = ("q_norm", "k_norm", "q_layernorm", "k_layernorm", "q_a_layernorm", "kv_a_layernorm")
"""Norms inside attention: they read projections, not the residual stream."""


@dataclass(frozen=True)
class NormName:
    """The parts of the canonical name of a norm layer's scale."""

    layer: str
    """Name of the layer, without `.weight`."""
    bias: str
    """Name of the bias, if the layer has one."""
    block: int | None
    """Index of its block; None outside the blocks."""
    kind: str
    """The layer's name with `{}` for the block index; layers of one kind form a curve over depth."""

    @property
    def is_inner(self) -> bool:
        """Whether it is inside attention."""
        return self.layer.rpartition(".")[2] in INNER

    @property
    def reads_embedding(self) -> bool:
        """Whether it reads the residual stream at its beginning or end: outside the blocks, or in block 0."""
        return self.block is None or (self.block == 0 and not self.is_inner)


def parse_norm(name: str, num_dims: int) -> NormName | None:
    """The norm layer whose scale has this `name`; None for any other tensor.

    The scale of a norm layer is one-dimensional, its last name part is `weight`, and the part before names a norm
    (trailing indices, as in `norms.0`, are skipped). Not found: unnamed members of a Sequential, and BatchNorms called
    identity.
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
    """Index of the block in a name, None outside the blocks, and the name with `{}` in its place."""
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
"""`model_type` of models with zero-centred norms -> regular expression of their layers that store the scale itself
(read from the classes of transformers 5.23)."""

AS_STORED = frozenset(
    (
        *("deepseek_v2", "deepseek_v3", "ernie4_5", "exaone4", "glm", "glm4", "glm4_moe", "gpt_oss", "granite"),
        *("granitemoe", "helium", "llama", "llama4", "llama4_text", "ministral", "mistral", "mistral3", "mixtral"),
        *("mllama_text_model", "olmo2", "olmo3", "olmoe", "phi3", "phimoe", "qwen2", "qwen2_5_vl", "qwen2_5_vl_text"),
        *("qwen2_moe", "qwen2_vl", "qwen2_vl_text", "qwen3", "qwen3_moe", "qwen3_vl", "qwen3_vl_text", "smollm3"),
    )
)
"""`model_type` of common families whose norms multiply by the stored values, however small (from the same classes)."""

LAYER_NORMS = ("nemotron", "videoprism", "videoprism_text_model", "videoprism_vision_model")
"""Families whose zero-centred norms have a bias; those of the others are RMSNorms."""

LANGUAGE_SECTIONS = ("text_config", "vlm_config", "llm_config", "language_config")
NEAR_ZERO = 0.1
"""A scale that is used as stored starts at 1, and few end below this value (SmolLM2's first norm does, at 0.001)."""


def zero_centred_type(config: Mapping[str, Any]) -> str | None:
    """The `model_type` in the table of the language part, or else of the whole model; None if neither is there."""
    return _type_among(ZERO_CENTRED, config)


def is_known(config: Mapping[str, Any]) -> bool:
    """Whether it is known how the norms of the language part, or else of the whole model, use the stored values."""
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
    """Stem of a class name in `architectures`, "Gemma3ForCausalLM" -> "gemma3": the `type_stem` of its model_type."""
    stem = re.sub(r"(?:For[A-Z]\w*|(?:LMHead|Pretrained|PreTrained)?Model)$", "", str(name))
    return stem.replace("_", "").lower()


def type_stem(model_type: str) -> str:
    """A `model_type` without the parts that class names leave out."""
    return re.sub(r"[_-]", "", model_type.removesuffix("_model"))


def is_zero_centred(model_type: str | None, layer: str, norm_type: str) -> bool:
    """Whether the norm `layer` (canonical name) in a model of this type multiplies by 1 + w."""
    if model_type is None or norm_type != ("LayerNorm" if model_type in LAYER_NORMS else "RMSNorm"):
        return False
    return not re.fullmatch(ZERO_CENTRED[model_type], layer)
