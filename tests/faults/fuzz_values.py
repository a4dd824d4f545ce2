"""The values that mutators choose from."""
# ruff: noqa: E501, RUF001
# fmt: off

from typing import Any

AWAY = "@AWAY@"
"""In a name: a folder outside of the command's own, where nothing may ever appear."""
DEEP, LONG_INTEGER = "@DEEP@", "@INTEGER@"
"""In JSON: nested 100,000 deep; an integer of more digits than Python converts."""
STRINGS = [
    "", " ", ".", "..", "/", "a/b", "../x", "../../../x", f"{AWAY}/x", "a\\b", "a\0b", "\ud800", "\x1b[31mred", "\r\n", "\n",
    "[/x]", "[bold]", "[", r"$\frac{$", "%s%n", "{0.__class__}", "x" * 300, "é" * 200, "\u202ereversed", "e\u0301", "CON",
    "-x", "--help", "~", "*", "NaN", "1e999", "null", "\ufeff", "𝔘", "model.safetensors", "/dev/zero", "/etc/passwd",
]
NUMBERS: list[Any] = [
    0, -1, 1, 2, 3, 7, 255, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, 10**9, 10**30, -(2**63), 0.5, -0.0, 1.0, 1e-320, 1e308,
    float("nan"), float("inf"), -float("inf"), LONG_INTEGER,
]
OTHERS: list[Any] = [None, True, False, [], {}, [0], [None], ["a"], [[]], {"": 0}, {"a": {"b": [1]}}, DEEP, [1] * 5000]
KINDS = ["gone", "empty", "a folder", "a pipe", "/dev/zero", "/dev/null", "a dangling link", "a link to itself", "a git-LFS pointer", "a link to a good file", "unreadable"]
TENSOR_TYPES = ["float64", "float16", "bfloat16", "int8", "int64", "bool", "float8_e4m3fn"]
TENSOR_CHANGES = [
    "gone", "renamed", "NaN", "infinity", "zeros", "huge", "tiny", "turned", "flat", "shorter", "longer", "scalar", "empty", "one axis more", "constant", "moved",
    *TENSOR_TYPES,
]
DTYPES = ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I64", "I32", "U8", "BOOL", "F4", "C64", "f32", ""]
WRAPPERS = ["_orig_mod.", "module.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "base_model.model.", "model."]
HUGE = [10**5, 10**6, 10**9, 2**31, 2**63]

CONFIG_KEYS: dict[str, list[Any]] = {
    "num_hidden_layers": [0, -1, *HUGE], "hidden_size": [0, -1, 7, *HUGE], "vocab_size": [0, 1, *HUGE], "intermediate_size": HUGE,
    "num_attention_heads": [0, -4, 3, *HUGE], "num_key_value_heads": [0, 3, *HUGE], "max_position_embeddings": [0, 1, 8, *HUGE],
    "head_dim": [0, -1, 5, *HUGE], "model_type": ["llama", "gpt2", "qwen2", "mamba", "bert", "t5", "gemma3", "mixtral", "gpt_oss", "", "x"],
    "architectures": [["X"], [], None, "LlamaForCausalLM"], "auto_map": [{"AutoConfig": "x.Y", "AutoModelForCausalLM": "x.Y"}],
    "quantization_config": [{"quant_method": "gptq", "bits": 4}, {"quant_method": "bitsandbytes", "load_in_8bit": True}, {}, {"quant_method": "x"}],
    "torch_dtype": ["bfloat16", "float8_e4m3fn", "x", 5, "int8", "auto"], "dtype": ["x", "float16", 7], "hidden_act": ["x", "gelu", 5],
    "rope_parameters": [{"rope_type": "x"}, {"rope_type": "dynamic", "factor": "x"}, {"rope_type": "yarn", "factor": 1e30}, {}, 5],
    "rope_scaling": [{"type": "linear", "factor": 0}, {"type": "x"}, []], "layer_types": [["x"], ["sliding_attention"] * 2, []],
    "tie_word_embeddings": [False, True, "no"], "attention_bias": [True], "mlp_bias": [True], "sliding_window": [0, 1, "x"],
    "bos_token_id": [10**9, -1, [1, 2], "x", 5], "eos_token_id": [10**9, -1, [1, 2], "x"], "pad_token_id": [10**9, -1, 64, "x"],
    "attn_implementation": ["flash_attention_2", "x"], "_attn_implementation": ["flash_attention_2"], "use_cache": ["x"],
    "transformers_version": ["99", 5], "id2label": [{"0": "a"}, "x"], "num_labels": [10**9, -1], "text_config": [{}, [], "x", {"model_type": "llama"}],
    "vision_config": [{}, [], "x"], "is_encoder_decoder": [True], "tokenizer_class": ["X", "BertTokenizer"], "pretraining_tp": [0, 2],
    "image_token_id": [10**9, -1, "x"], "base_model_name_or_path": ["../lm", "/etc"], "_name_or_path": ["/etc", 5], "rms_norm_eps": ["x", 0, -1],
    "initializer_range": ["x", -1],
}

TOKENIZER_PARTS: dict[str, list[Any]] = {
    "truncation": [{"direction": "Right", "max_length": n, "strategy": "LongestFirst", "stride": s} for n in (0, 1, 4) for s in (0, 3)],
    "padding": [{"strategy": {"Fixed": n}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": i, "pad_type_id": 0, "pad_token": "<pad>"}
                for n in (0, 64, 10**8) for i in (0, 10**6)],
    "normalizer": [{"type": "Lowercase"}, {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "b"}, {"type": "X"},
                   {"type": "Prepend", "prepend": "a" * 10**4}],
    "pre_tokenizer": [None, {"type": "Whitespace"}, {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}],
    "decoder": [{"type": "ByteLevel"}, {"type": "X"}],
    "post_processor": [{"type": "TemplateProcessing", "pair": [], "single": [{"SpecialToken": {"id": "<b>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                        {"SpecialToken": {"id": "<b>", "type_id": 0}}], "special_tokens": {"<b>": {"id": "<b>", "ids": [i], "tokens": ["<b>"]}}} for i in (1, 70, 10**6)],
    "added_tokens": [[{"id": i, "content": c, "single_word": False, "lstrip": False, "rstrip": False, "normalized": n, "special": s}]
                     for i in (0, 5, 64, 10**6, 2**32, -1) for c in ("<b>", "a", "") for n, s in ((False, True), (True, False))],
    "version": ["9", 5],
}
TOKENIZER_KEYS: dict[str, list[Any]] = {
    "model_max_length": [0, -1, 1, 4, 1e30, "x", None, float("nan"), float("inf")], "tokenizer_class": ["X", "BertTokenizer", "LlamaTokenizer", "T5Tokenizer", 5],
    "chat_template": ["{{ 1/0 }}", "{% for i in range(10**9) %}a{% endfor %}", "{{ messages }}", "{{ raise_exception('x') }}", "{%", 5, [{"name": "a"}]],
    "bos_token": ["<new>", "a", "", 5, {"content": "<b>", "__type": "AddedToken"}], "eos_token": ["<new>", "a", None, 5], "pad_token": [None, "<new>", "a", 5],
    "unk_token": [None, "<new>"], "add_bos_token": [True, "x"], "add_eos_token": [True], "added_tokens_decoder": [{"1000000": {"content": "<b>"}}, {"x": {}}, {"-1": {"content": "b"}}, []],
    "auto_map": [{"AutoTokenizer": ["x.Y", None]}], "extra_special_tokens": [["<x>"], {"a": "<x>"}, 5], "padding_side": ["left", "x"], "backend": ["x", None],
    "split_special_tokens": [True], "clean_up_tokenization_spaces": ["x"],
}

OUTPUTS = {
    "decompose": "--output-dir", "compare-rotations": "--output-dir", "cache": "--output-dir", "train-lowrank": "--results-dir",
    "compare-lowrank": "--output-dir", "visualize": "--output-dir", "build": "--save-path", "train-adapter": "--output-dir",
    "verify": "--save-stats", "compare-stats": "--output-dir", "norms": "--output",
}
ROW_CHANGES = ["row"] * 6 + ["BOM", "UTF-16", "latin-1", "NUL", "U+2028", "one line", "CR", "empty lines", "long", "blank"]
TABLE_CHANGES = ["gone", "renamed", "twice", "type", "type", "value", "value", "no rows", "bomb", "index", "metadata", "null"]
PICTURE_CHANGES = ["mode"] * 4 + ["bytes"] * 3 + ["size", "size", "exif", "claim", "chunk", "frames", "name", "other"]
MODES = ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16", "RGBa", "La", "RGBX"]
FORMATS = ["PNG", "TIFF", "JPEG", "WEBP", "BMP", "GIF", "JPEG2000", "PPM", "ICO", "TGA", "DIB", "SGI", "AVIF"]
PICTURE_NAMES = ["[x].png", "x\ny.png", "é" * 100 + ".png", " .png", "-x.png", "\x1b[31m.png", "%s.PNG", "x.JPEG", ".hidden.png"]
NO_PICTURES = [
    b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.4", b"%!PS-Adobe-3.0 EPSF\n%%BoundingBox: 0 0 9 9\nshowpage", b"BM", b"GIF89a", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP",
    b"II*\0\x08\0\0\0\xff\xff", b"P6 99999 99999 255\n", b"#define x_width 99999\n#define x_height 99999\n",
]
BESIDE = [
    "adapter_config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "vocab.json", "merges.txt", "tokenizer_config.json", "spiece.model", "configuration_x.py", "modeling_x.py", "model.safetensors.index.json", "reference.json", "nullspace.json",
]
"""Files that libraries, or we, look for in a model's folder."""
TAKEN = [
    "notes.txt", "model.safetensors", "index.json", "meta.json", "config.json", "nullspace.json", "best_model.json", "layers.csv", "metrics.json", "comparison.csv", "history.json",
    "rank_curve.json", "compare_stats.csv", "features-00000.safetensors", "adapter_model.safetensors",
]
"""Names that our own files have too."""
PLACES = (".", "..", "checkpoints", "checkpoints/base", "checkpoints/base/model.safetensors", "checkpoints/base/config.json", "lm", "lm/x", "lm/config.json",
          "images", "images/x", "images/000.png", "text.txt", "rows.jsonl", "adapter", "adapter/nullspace.json", "features", "features/meta.json", "svd", "svd/base",
          "svd/base/index.json", "stats", "stats/init.json", "results", "results/Sketch", "other", "other/base", "other/ft", "other/sub/x", "link", "link-to-file",
          "dangling", "pipe", "other/notes.txt", "[x]", "$x$", "\x1b[31m", "é", "x" * 300, "a/" * 100 + "x", "-", "~", "%41", "../../../x", "other/../other", "other/")
PLACES_PARTS = ("checkpoints/base", "lm", "images", "text.txt", "rows.jsonl", "adapter", "features", "svd/base", "svd/rl_stage1", "svd/rl_stage2",
                "stats/init.json", "stats/trained.json", "results/Sketch")
