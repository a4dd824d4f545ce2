"""The table of known families, one row each: read from the classes of transformers 5.23, against which tests check it.

transformers has no class for Molmo, Kimi-VL and MoonViT; their rows come from the files and code on the hub.
"""

from subspacelab.norms.families import EmbeddingKind, EmbeddingName, Extra, Family, Section, Tower

RMS, LAYER = "RMSNorm", "LayerNorm"
TEXT_ROOT = r"(?!(?:.*\.)?(?:vision|visual|multi_modal|audio|image|embed_vision|embed_audio)\w*\.)"
VISION_ROOT = r"(?:.*\.)?(?:vision|visual)\w*\."
PROJECTOR = Tower("projector", r"(?:.*\.)?multi_modal_projector\.", LAYER, per_block=0)
MOONVIT_ROOT = r"(?:vision_tower\.|vision_model\.)?"


def only(norm_type: str, per_block: int) -> tuple[Tower, ...]:
    """The single tower of a language model."""
    return (Tower("text", "", norm_type, per_block),)


def with_mtp(per_block: int, extra: Extra) -> tuple[Tower, ...]:
    """The same for a model whose files may hold additional blocks that predict ahead."""
    return (Tower("text", "", RMS, per_block, extras=(extra,), predicts_ahead=True),)


def text(norm_type: str, per_block: int, *, follows: bool = False) -> Tower:
    """The language tower of a model with several towers."""
    return Tower("text", TEXT_ROOT, norm_type, per_block, section="text_config", follows=follows)


def vision(norm_type: str, per_block: int, outside: int, depth: str, default: int | None) -> Tower:
    """The vision tower of a model with a language tower."""
    return Tower("vision", VISION_ROOT, norm_type, per_block, outside, "vision_config", (depth,), default)


def _full_attention(section: Section, depth: int) -> int:
    """Additional norm layers if full-attention blocks have q_norm and k_norm, linear-attention blocks one norm."""
    types = section.get("layer_types")
    if isinstance(types, list):
        return types.count("full_attention")
    return depth // int(section.get("full_attention_interval") or 4)


def _falcon(section: Section, depth: int) -> int:
    """Additional norm layer per block if attention and MLP are sequential, or in new blocks with one norm for each."""
    if section.get("new_decoder_architecture"):
        return depth if section.get("num_ln_in_parallel_attn") in (None, 2) else 0
    return 0 if section.get("parallel_attn", True) else depth


WORDS: tuple[EmbeddingKind, ...] = ("token",)
ROUTED: tuple[EmbeddingKind, ...] = ("token", "expert router")
SEEN: tuple[EmbeddingKind, ...] = ("token", "patch")
PLACED: tuple[EmbeddingKind, ...] = ("token", "position", "patch")
QUERY_COMPRESSED = Extra(("q_lora_rank",), per_block=1, default=True)
QK_NORMS = Extra(("use_qk_norm",), per_block=2)
HYBRID = Tower("text", TEXT_ROOT, RMS, 3, section="text_config", more=_full_attention, uncounted=r"mtp\..*")
SIGLIP_VISION = Tower(
    "vision",
    r"(?:vision_model\.)?(?!text_model\.)",
    LAYER,
    per_block=2,
    section="vision_config",
    default_depth=12,
    extras=(Extra(("vision_use_head",), outside=1, default=True),),
)
SIGLIP_INSIDE = Tower("vision", VISION_ROOT, LAYER, 2, 1, "vision_config", default_depth=27, follows=True)
CLIP_TEXT = Tower("text", r"text_model\.", LAYER, 2, section="text_config", default_depth=12)
CLIP_VISION = Tower("vision", r"(?:vision_model\.)?", LAYER, 2, 2, "vision_config", default_depth=12)
MOONVIT_EMBEDDINGS = (
    EmbeddingName("patch", MOONVIT_ROOT + r"patch_embed\.proj\.weight"),
    EmbeddingName("position", MOONVIT_ROOT + r"patch_embed\.pos_emb\.weight"),
)

ORIGINAL = (
    Family(
        name="qwen2",
        label="Qwen2.5",
        towers=only(RMS, 2),
        embeddings=(EmbeddingName("token", r"(?:model\.)?embed_tokens\.weight"),),
        signature=(r"(model\.)?layers\.0\.self_attn\.q_proj\.bias",),
        absent=(r".*visual\..*", r".*vision.*", r".*\.mlp\.gate\.weight", r".*\.q_norm\.weight"),
    ),
    Family(
        name="qwen2_5_vl",
        label="Qwen2.5-VL",
        towers=(
            Tower("text", r"model\.", RMS, 2, section="text_config"),
            Tower("vision", r"visual\.", RMS, 2, 1, "vision_config", ("depth",), 32),
        ),
        embeddings=(
            EmbeddingName("token", r"model\.embed_tokens\.weight"),
            EmbeddingName("patch", r"visual\.patch_embed\.proj\.weight"),
        ),
        signature=(r"visual\.merger\.ln_q\.weight",),
        absent=(r"visual\.blocks\.0\.mlp\.fc1\.weight", r"visual\.blocks\.0\.norm1\.bias"),  # Qwen2-VL has these
    ),
    Family(
        name="vit",
        label="ViT",
        towers=(Tower("vision", "", LAYER, 2, default_depth=12),),
        embeddings=(
            EmbeddingName("patch", r"(?:vit\.)?embeddings\.patch_embeddings\.projection\.weight"),
            EmbeddingName("position", r"(?:vit\.)?embeddings\.position_embeddings"),
            EmbeddingName("class token", r"(?:vit\.)?embeddings\.cls_token"),
        ),
        signature=(r"(vit\.)?(encoder\.layer|layers)\.0\.layernorm_before\.weight",),
    ),
    Family(
        name="siglip",
        label="SigLIP",
        also=("siglip2",),
        towers=(CLIP_TEXT, SIGLIP_VISION),
        signature=(r"text_model\.final_layer_norm\.weight", r"vision_model\.head\.probe"),
        all_norms=True,
    ),
    Family(
        name="siglip_vision_model",
        label="SigLIP, vision tower",
        also=("siglip2_vision_model",),
        towers=(SIGLIP_VISION,),
        signature=(r"(vision_model\.)?post_layernorm\.weight", r"(vision_model\.)?head\.probe"),
        absent=(r"text_model\..*",),
        all_norms=True,
    ),
    Family(
        name="molmo",
        label="Molmo",
        towers=(
            Tower(
                "text",
                r"model\.transformer\.",
                RMS,
                per_block=2,
                depth_keys=("num_hidden_layers", "n_layers"),
                extras=(Extra(("attention_layer_norm",), per_block=2),),  # q_norm and k_norm
            ),
            # Its config has no field for the vision tower: 23 blocks stand in the code.
            Tower("vision", r"model\.vision_backbone\.image_vit\.", LAYER, 2, depth_keys=(), default_depth=23),
        ),
        embeddings=(
            EmbeddingName("token", r"model\.transformer\.wte\.embedding"),
            EmbeddingName(
                "token", r"model\.transformer\.wte\.new_embedding", continues="model.transformer.wte.embedding"
            ),
            EmbeddingName("patch", r"model\.vision_backbone\.image_vit\.patch_embedding\.weight"),
            EmbeddingName("position", r"model\.vision_backbone\.image_vit\.positional_embedding"),
        ),
        signature=(r"model\.transformer\.wte\.new_embedding",),
    ),
    Family(
        name="kimi_vl",
        label="Kimi-VL",
        towers=(
            Tower(
                "text",
                r"language_model\.",
                RMS,
                per_block=3,
                section="text_config",
                extras=(Extra(("q_lora_rank",), per_block=1),),  # q_a_layernorm
            ),
            Tower("vision", r"vision_tower\.", LAYER, 2, section="vision_config", default_depth=27),
            PROJECTOR,
        ),
        embeddings=(EmbeddingName("token", r"language_model\.model\.embed_tokens\.weight"), *MOONVIT_EMBEDDINGS),
        signature=(r"vision_tower\.encoder\.blocks\.0\.wqkv\.weight", r"multi_modal_projector\.pre_norm\.weight"),
    ),
    Family(
        name="moonvit",
        label="MoonViT",
        towers=(Tower("vision", "", LAYER, 2, default_depth=27),),
        embeddings=MOONVIT_EMBEDDINGS,
        signature=(MOONVIT_ROOT + r"encoder\.blocks\.0\.wqkv\.weight",),
        absent=(r"language_model\..*", r"multi_modal_projector\..*"),
    ),
)
"""The seven families of the original study, which are also recognised by the names of their weights."""

LANGUAGE = (
    Family("llama", "Llama 2/3 and kin", only(RMS, 2), ("mistral", "ministral3", "smollm3", "granite"), WORDS),
    Family("llama4_text", "Llama 4, text", only(RMS, 2), (), ROUTED),
    Family("qwen2_moe", "Qwen2-MoE", only(RMS, 2), (), ROUTED),
    Family("qwen3", "Qwen3", only(RMS, 4), (), WORDS),
    Family("qwen3_moe", "Qwen3-MoE", only(RMS, 4), (), ROUTED),
    Family("qwen3_next", "Qwen3-Next", (HYBRID,), (), ROUTED),
    Family("gemma", "Gemma", only(RMS, 2), (), WORDS),
    Family("gemma2", "Gemma 2", only(RMS, 4), (), WORDS),
    Family("gemma3_text", "Gemma 3, text", only(RMS, 6), (), WORDS),
    Family(
        "gemma3n_text",
        "Gemma 3n, text",
        # Blocks that share the keys of others have no k_norm, and in files of earlier versions an unused one.
        (Tower("text", "", RMS, 8, 2, uncounted=r".*\.k_norm"),),
        (),
        WORDS,
    ),
    Family("phi3", "Phi-3/4", only(RMS, 2), (), WORDS),
    Family("phimoe", "Phi-MoE", only(LAYER, 2), (), ROUTED),
    Family("deepseek_v3", "DeepSeek-V2/V3", with_mtp(3, QUERY_COMPRESSED), ("deepseek_v2",), ROUTED),
    Family("gpt_oss", "gpt-oss", only(RMS, 2), (), ROUTED),
    Family("mixtral", "Mixtral", only(RMS, 2), (), ROUTED),
    Family("glm", "GLM-4", only(RMS, 2), (), WORDS),
    Family("glm4", "GLM-4-0414", only(RMS, 4), (), WORDS),
    Family("glm4_moe", "GLM-4-MoE", with_mtp(2, QK_NORMS), (), ROUTED),
    Family("olmo2", "OLMo 2/3", only(RMS, 4), ("olmo3",), WORDS),
    Family("olmoe", "OLMoE", only(RMS, 4), (), ROUTED),
    Family("falcon", "Falcon", (Tower("text", "", LAYER, 1, more=_falcon),), (), WORDS),
    Family("gpt2", "GPT-2", (Tower("text", "", LAYER, 2, depth_keys=("n_layer",)),), (), ("token", "position")),
    Family("gpt_neox", "GPT-NeoX", only(LAYER, 2), (), WORDS),
)

ENCODERS = (
    Family(
        "bert",
        "BERT and RoBERTa",
        (Tower("text", "", LAYER, 2, uncounted=r"cls\..*|lm_head\..*"),),
        ("roberta", "xlm-roberta", "camembert"),
        ("token", "position", "token type"),
    ),
    Family(
        "distilbert",
        "DistilBERT",
        (Tower("text", "", LAYER, 2, depth_keys=("n_layers",), default_depth=6, uncounted="vocab_layer_norm"),),
        (),
        ("token", "position"),
    ),
    # One norm after the embeddings and a final one; the first block has none before its attention.
    Family("modernbert", "ModernBERT", (Tower("text", "", LAYER, 2, uncounted=r"head\..*", biases=False),), (), WORDS),
    Family(
        "t5",
        "T5",
        (
            Tower("encoder", r"encoder\.", RMS, 2, depth_keys=("num_layers",), default_depth=6),
            Tower("decoder", r"decoder\.", RMS, 3, depth_keys=("num_decoder_layers", "num_layers"), default_depth=6),
        ),
        ("mt5", "umt5"),
        WORDS,
    ),
    Family(
        "whisper",
        "Whisper",
        (
            Tower("encoder", r"(?:model\.)?encoder\.", LAYER, 2, depth_keys=("encoder_layers",)),
            Tower("decoder", r"(?:model\.)?decoder\.", LAYER, 3, depth_keys=("decoder_layers",)),
        ),
        (),
        ("token", "position"),
    ),
    Family("clip", "CLIP", (CLIP_TEXT, CLIP_VISION), (), PLACED),
    Family("clip_vision_model", "CLIP, vision tower", (CLIP_VISION,), (), ("patch", "position")),
    Family(
        "dinov2",
        "DINOv2",
        (Tower("vision", "", LAYER, 2, default_depth=12),),
        ("dinov2_with_registers",),
        ("patch", "position", "class token"),
    ),
    Family(
        "dinov3_vit",
        "DINOv3",
        (Tower("vision", "", LAYER, 2, default_depth=12),),
        (),
        ("patch", "class token", "register"),
    ),
)

VISION_LANGUAGE = (
    Family(
        "llama4",
        "Llama 4",
        (text(RMS, 2), vision(LAYER, 2, 2, "num_hidden_layers", 34)),
        (),
        (*PLACED, "expert router"),
    ),
    Family("qwen2_vl", "Qwen2-VL", (text(RMS, 2), vision(LAYER, 2, 1, "depth", 32)), (), SEEN),
    Family(
        "qwen3_vl",
        "Qwen3-VL",
        (
            text(RMS, 4),
            Tower(
                *("vision", VISION_ROOT, LAYER, 2, 1, "vision_config", ("depth",), 27),
                more=lambda section, depth: len(section.get("deepstack_visual_indexes") or (8, 16, 24)),
            ),
        ),
        ("qwen3_vl_moe",),
        PLACED,
    ),
    Family(
        "gemma3",
        "Gemma 3",
        (text(RMS, 6, follows=True), SIGLIP_INSIDE, Tower("projector", PROJECTOR.root, RMS, 0)),
        (),
        PLACED,
    ),
    # By hand, of names: its vision tower is timm's, which transformers builds only where timm is installed.
    Family(
        "gemma3n",
        "Gemma 3n",
        (
            Tower("text", TEXT_ROOT, RMS, 8, 2, "text_config", uncounted=r".*\.k_norm"),
            Tower("vision", VISION_ROOT, RMS, 0, 0, uncounted=".*"),
            Tower("audio", r"(?:.*\.)?audio\w*\.", RMS, 0, 0, uncounted=".*"),
            Tower("projector", r"(?:.*\.)?embed_(?:vision|audio)\.", RMS, 0, 0, uncounted=".*"),
        ),
        (),
        WORDS,
    ),
    Family("paligemma", "PaliGemma", (text(RMS, 2, follows=True), SIGLIP_INSIDE), (), PLACED),
    Family(
        "idefics3",
        "SmolVLM and Idefics3",
        (text(RMS, 2, follows=True), vision(LAYER, 2, 1, "num_hidden_layers", 12)),
        ("smolvlm",),
        PLACED,
    ),
    Family(
        "internvl",
        "InternVL",
        (
            text(RMS, 2, follows=True),
            Tower(
                *("vision", VISION_ROOT, LAYER, 2, 0, "vision_config", ("num_hidden_layers",), 24),
                extras=(QK_NORMS,),
                more=lambda section, depth: int(not section.get("use_mean_pooling", True)),
            ),
            PROJECTOR,
        ),
        (),
        SEEN,
    ),
)

FAMILIES = (*ORIGINAL, *LANGUAGE, *ENCODERS, *VISION_LANGUAGE)
"""All rows; if two match, the first counts."""
