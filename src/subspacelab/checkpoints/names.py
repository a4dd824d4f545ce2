"""One name per weight, whichever of the layouts its checkpoint was saved in."""

import re

RULES = (
    (re.compile(r"^(?:module\.|_orig_mod\.|base_model\.model\.)+"), ""),
    (re.compile(r"^model\.visual\."), "visual."),
    (re.compile(r"^model\.language_model\."), "model."),
    (re.compile(r"^language_model\.(?!model\.|lm_head)"), "model."),
)
"""Wrappers of data-parallel, torch.compile and peft; then the three layouts that differ from the hub's."""


def canonical_name(raw: str) -> str:
    """The hub's name of a weight: `model.visual.x` -> `visual.x`, `model.language_model.x` -> `model.x`.

    The four layouts of one Qwen2.5-VL agree; applying it twice changes nothing. Files are read by
    their raw names: this one is for comparing checkpoints and matching patterns.
    """
    name = raw
    for pattern, replacement in RULES:
        name = pattern.sub(replacement, name)
    return name if name == raw else canonical_name(name)
