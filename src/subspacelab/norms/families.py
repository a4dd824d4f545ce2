"""The table of known model families: parts, norm layers, embeddings; and which of them a checkpoint is of."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

EmbeddingKind = Literal["token", "position", "token type", "patch", "class token", "register", "expert router", "other"]
"""What is embedded; only tokens are words of the tokenizer, and a kind is compared with itself alone."""


@dataclass(frozen=True)
class Extra:
    """Norm layers that a model has only where its config says so."""

    keys: tuple[str, ...]
    """Dotted keys of config.json, the first that is there decides; truthy means present."""
    per_block: int = 0
    """How many more in each block."""
    outside: int = 0
    """How many more outside the blocks."""
    default: bool = False
    """What holds when config.json has none of the keys."""


@dataclass(frozen=True)
class Tower:
    """A stack of blocks, or what joins two of them, and how many norm layers it has."""

    name: str
    """text, vision or projector."""
    root: str
    """Regular expression that the canonical names of its weights begin with."""
    norm_type: str
    """RMSNorm or LayerNorm; a file that says otherwise is believed, with a warning."""
    per_block: int
    """Norm layers in each block."""
    outside: int
    """Norm layers before, after and beside the blocks."""
    depth_keys: tuple[str, ...] = ()
    """Dotted keys of config.json that hold the number of blocks; the first that is there counts."""
    default_depth: int | None = None
    """The number of blocks when config.json leaves it out, as this family's code has it."""
    extras: tuple[Extra, ...] = ()
    """Norm layers that some models of the family have."""


@dataclass(frozen=True)
class EmbeddingName:
    """Where an embedding is stored."""

    kind: EmbeddingKind
    """What is embedded."""
    pattern: str
    """Regular expression of the whole canonical name."""
    continues: str | None = None
    """Canonical name of the embedding whose last id is followed by this one's first."""


@dataclass(frozen=True)
class Family:
    """A row of the table."""

    name: str
    """The `model_type` of config.json, the usual one of the family."""
    label: str
    """What people call it."""
    model_types: tuple[str, ...]
    """Every `model_type` that means this family."""
    architectures: tuple[str, ...]
    """Class names in `architectures` that mean it, where there is no model_type."""
    signature: tuple[str, ...]
    """Regular expressions of canonical names, all of which are there, when config.json says nothing."""
    absent: tuple[str, ...]
    """And of names none of which is there."""
    towers: tuple[Tower, ...]
    """Its parts."""
    embeddings: tuple[EmbeddingName, ...] = ()
    """Its embeddings; none for SigLIP, of which the norm layers alone are studied."""
    all_norms: bool = False
    """Whether all norm layers are reported by default, not only the embedding-related ones."""


MOONVIT_ROOT = r"(?:vision_tower\.|vision_model\.)?"
SIGLIP_VISION = Tower(
    "vision",
    r"(?:vision_model\.)?(?!text_model\.)",
    "LayerNorm",
    per_block=2,
    outside=1,
    depth_keys=("vision_config.num_hidden_layers", "num_hidden_layers"),
    default_depth=12,
    extras=(Extra(("vision_config.vision_use_head", "vision_use_head"), outside=1, default=True),),
)
MOONVIT_EMBEDDINGS = (
    EmbeddingName("patch", MOONVIT_ROOT + r"patch_embed\.proj\.weight"),
    EmbeddingName("position", MOONVIT_ROOT + r"patch_embed\.pos_emb\.weight"),
)

FAMILIES = (
    Family(
        name="qwen2",
        label="Qwen2.5",
        model_types=("qwen2",),
        architectures=("Qwen2ForCausalLM", "Qwen2Model"),
        signature=(r"(model\.)?layers\.0\.self_attn\.q_proj\.bias",),
        absent=(r".*visual\..*", r".*vision.*", r".*\.mlp\.gate\.weight", r".*\.q_norm\.weight"),
        towers=(Tower("text", "", "RMSNorm", per_block=2, outside=1, depth_keys=("num_hidden_layers",)),),
        embeddings=(EmbeddingName("token", r"(?:model\.)?embed_tokens\.weight"),),
    ),
    Family(
        name="qwen2_5_vl",
        label="Qwen2.5-VL",
        model_types=("qwen2_5_vl",),
        architectures=("Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLModel"),
        signature=(r"visual\.merger\.ln_q\.weight",),
        absent=(r"visual\.blocks\.0\.mlp\.fc1\.weight", r"visual\.blocks\.0\.norm1\.bias"),  # Qwen2-VL has these
        towers=(
            Tower(
                "text",
                r"model\.",
                "RMSNorm",
                per_block=2,
                outside=1,
                depth_keys=("text_config.num_hidden_layers", "num_hidden_layers"),
            ),
            Tower(
                "vision",
                r"visual\.",
                "RMSNorm",
                per_block=2,
                outside=1,
                depth_keys=("vision_config.depth",),
                default_depth=32,
            ),
        ),
        embeddings=(
            EmbeddingName("token", r"model\.embed_tokens\.weight"),
            EmbeddingName("patch", r"visual\.patch_embed\.proj\.weight"),
        ),
    ),
    Family(
        name="vit",
        label="ViT",
        model_types=("vit",),
        architectures=("ViTForImageClassification", "ViTModel", "ViTForMaskedImageModeling"),
        signature=(r"(vit\.)?(encoder\.layer|layers)\.0\.layernorm_before\.weight",),
        absent=(),
        towers=(
            Tower(
                "vision",
                "",
                "LayerNorm",
                per_block=2,
                outside=1,
                depth_keys=("num_hidden_layers",),
                default_depth=12,
            ),
        ),
        embeddings=(
            EmbeddingName("patch", r"(?:vit\.)?embeddings\.patch_embeddings\.projection\.weight"),
            EmbeddingName("position", r"(?:vit\.)?embeddings\.position_embeddings"),
            EmbeddingName("class token", r"(?:vit\.)?embeddings\.cls_token"),
        ),
    ),
    Family(
        name="siglip",
        label="SigLIP",
        model_types=("siglip", "siglip2"),
        architectures=("SiglipModel", "Siglip2Model"),
        signature=(r"text_model\.final_layer_norm\.weight", r"vision_model\.head\.probe"),
        absent=(),
        towers=(
            Tower(
                "text",
                r"text_model\.",
                "LayerNorm",
                per_block=2,
                outside=1,
                depth_keys=("text_config.num_hidden_layers",),
                default_depth=12,
            ),
            SIGLIP_VISION,
        ),
        all_norms=True,
    ),
    Family(
        name="siglip_vision_model",
        label="SigLIP, vision tower",
        model_types=("siglip_vision_model", "siglip2_vision_model"),
        architectures=("SiglipVisionModel", "Siglip2VisionModel"),
        signature=(r"(vision_model\.)?post_layernorm\.weight", r"(vision_model\.)?head\.probe"),
        absent=(r"text_model\..*",),
        towers=(SIGLIP_VISION,),
        all_norms=True,
    ),
    Family(
        name="molmo",
        label="Molmo",
        model_types=("molmo",),
        architectures=("MolmoForCausalLM",),
        signature=(r"model\.transformer\.wte\.new_embedding",),
        absent=(),
        towers=(
            Tower(
                "text",
                r"model\.transformer\.",
                "RMSNorm",
                per_block=2,
                outside=1,
                depth_keys=("num_hidden_layers", "n_layers"),
                extras=(Extra(("attention_layer_norm",), per_block=2),),  # q_norm and k_norm
            ),
            # Its config has no field for the vision tower: 23 blocks stand in the code.
            Tower(
                "vision",
                r"model\.vision_backbone\.image_vit\.",
                "LayerNorm",
                per_block=2,
                outside=1,
                default_depth=23,
            ),
        ),
        embeddings=(
            EmbeddingName("token", r"model\.transformer\.wte\.embedding"),
            EmbeddingName(
                "token", r"model\.transformer\.wte\.new_embedding", continues="model.transformer.wte.embedding"
            ),
            EmbeddingName("patch", r"model\.vision_backbone\.image_vit\.patch_embedding\.weight"),
            EmbeddingName("position", r"model\.vision_backbone\.image_vit\.positional_embedding"),
        ),
    ),
    Family(
        name="kimi_vl",
        label="Kimi-VL",
        model_types=("kimi_vl",),
        architectures=("KimiVLForConditionalGeneration",),
        signature=(r"vision_tower\.encoder\.blocks\.0\.wqkv\.weight", r"multi_modal_projector\.pre_norm\.weight"),
        absent=(),
        towers=(
            Tower(
                "text",
                r"language_model\.",
                "RMSNorm",
                per_block=3,
                outside=1,
                depth_keys=("text_config.num_hidden_layers",),
                extras=(Extra(("text_config.q_lora_rank",), per_block=1),),  # q_a_layernorm
            ),
            Tower(
                "vision",
                r"vision_tower\.",
                "LayerNorm",
                per_block=2,
                outside=1,
                depth_keys=("vision_config.num_hidden_layers",),
                default_depth=27,
            ),
            Tower("projector", r"multi_modal_projector\.", "LayerNorm", per_block=0, outside=1),
        ),
        embeddings=(EmbeddingName("token", r"language_model\.model\.embed_tokens\.weight"), *MOONVIT_EMBEDDINGS),
    ),
    Family(
        name="moonvit",
        label="MoonViT",
        model_types=("moonvit",),
        architectures=("MoonVitPretrainedModel",),
        signature=(MOONVIT_ROOT + r"encoder\.blocks\.0\.wqkv\.weight",),
        absent=(r"language_model\..*", r"multi_modal_projector\..*"),
        towers=(
            Tower(
                "vision",
                "",
                "LayerNorm",
                per_block=2,
                outside=1,
                depth_keys=("num_hidden_layers",),
                default_depth=27,
            ),
        ),
        embeddings=MOONVIT_EMBEDDINGS,
    ),
)


@dataclass(frozen=True)
class Detected:
    """A checkpoint's family."""

    family: Family | None
    """None when it is none of the table."""
    model_type: str
    """The family's `model_type`, as config.json writes it where it does; `unknown` outside the table."""
    found_by: str
    """model_type, architectures, key names; or what is unknown."""


def detect_family(config: Mapping[str, Any], names: Collection[str]) -> Detected:
    """The family by `model_type`, without one by `architectures`, without both by the canonical `names`.

    A `model_type` outside the table is unknown, whatever its keys look like: relatives differ in what matters here.
    """
    model_type = config.get("model_type")
    if model_type:
        family = next((f for f in FAMILIES if model_type in f.model_types), None)
        return Detected(family, str(model_type) if family else "unknown", f"model_type {model_type}")
    for name in config.get("architectures") or ():
        family = next((f for f in FAMILIES if name in f.architectures), None)
        if family:
            return Detected(family, family.name, f"architectures {name}")
    family = next((f for f in FAMILIES if _has_signature(f, names)), None)
    return Detected(family, family.name if family else "unknown", "the names of its weights")


def _has_signature(family: Family, names: Collection[str]) -> bool:
    def there(pattern: str) -> bool:
        return any(re.fullmatch(pattern, name) for name in names)

    return all(there(p) for p in family.signature) and not any(there(p) for p in family.absent)
