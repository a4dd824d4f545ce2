"""Groups of weights: a label and the patterns of the weights' names, in which `{}` stands for any layer."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from subspacelab.checkpoints import canonical_name

EXPERT = re.compile(r"\[\d+\]$")  # ends the name of an expert of a fused tensor
PLACEHOLDER = re.compile(r"\{(?:(\d+)-(\d+))?\}")
NUMBERED = re.compile(r"(?<![^.])(layers?|blocks?|resblocks|h|experts)\.\d+(?=\.|$)")

VISION = "visual.blocks.{}"
LANGUAGE = "model.layers.{}"
KNOWN = {
    f"{VISION}.attn.qkv": "vision QKV",
    f"{VISION}.attn.proj": "vision proj",
    f"{VISION}.mlp.gate_proj": "vision gate",
    f"{VISION}.mlp.up_proj": "vision up",
    f"{VISION}.mlp.down_proj": "vision down",
    f"{LANGUAGE}.self_attn.q_proj": "language Q",
    f"{LANGUAGE}.self_attn.k_proj": "language K",
    f"{LANGUAGE}.self_attn.v_proj": "language V",
    f"{LANGUAGE}.self_attn.o_proj": "language O",
    f"{LANGUAGE}.mlp.gate_proj": "language gate",
    f"{LANGUAGE}.mlp.up_proj": "language up",
    f"{LANGUAGE}.mlp.down_proj": "language down",
    "visual.patch_embed.proj": "patch embedding",
    "visual.merger.mlp.0": "merger",
    "visual.merger.mlp.2": "merger",
    "model.embed_tokens": "token embedding",
    "lm_head": "output head",
}


@dataclass(frozen=True)
class Group:
    """Several weights under one label."""

    label: str
    """Label in tables, pictures and metric names."""
    members: dict[str, int | None]
    """Canonical name -> the layer in place of `{}`; None if the pattern has no `{}`."""

    @property
    def is_curve(self) -> bool:
        """Whether its weights can be drawn over layers."""
        return any(layer is not None for layer in self.members.values())


def find_weights(pattern: str, names: Iterable[str]) -> dict[str, int | None]:
    """The names that match `pattern`, each with the layer in place of the first `{}` (None without one).

    `{}` is any index, `{0-11}` one from 0 to 11; everything else is literal, in any layout of the model. A final
    `.weight` may be left out, and so may the number of an expert in brackets, which then is any. ValueError for other
    braces and for a pattern that matches nothing.
    """
    literal = canonical_name(pattern.strip())
    if re.search(r"[{}]", PLACEHOLDER.sub("", literal)):
        raise ValueError(f"pattern {pattern!r}: braces hold nothing or a range, as in {{}} or {{0-11}}")
    ranges = [(int(low or 0), int(high) if high else None) for low, high in PLACEHOLDER.findall(literal)]
    parts = PLACEHOLDER.split(literal)[::3]
    compiled = re.compile(r"(\d+)".join(map(re.escape, parts)) + r"(?:\.weight)?(?:\[\d+\])?")
    found: dict[str, int | None] = {}
    for name in names:
        match = compiled.fullmatch(name)
        if match is None:
            continue
        indices = [int(index) for index in match.groups()]
        if all(low <= i and (high is None or i <= high) for i, (low, high) in zip(indices, ranges, strict=True)):
            found[name] = indices[0] if indices and not parts[0].endswith("[") else None
    if not found:
        raise ValueError(f"pattern {pattern!r} matches no weight that all checkpoints have")
    return found


def layer_index(name: str) -> int | None:
    """The layer that a weight belongs to; None for a weight outside the layers."""
    numbered = NUMBERED.search(name)
    return int(numbered.group().rpartition(".")[2]) if numbered else None


def default_groups(names: Iterable[str]) -> dict[str, str]:
    """A group for every pattern among `names`: label -> comma-separated patterns, known ones first."""
    return {label: ",".join(found) for label, found in _labelled(names).items()}


def _labelled(names: Iterable[str]) -> dict[str, list[str]]:
    labelled: dict[str, list[str]] = {}
    for pattern in sorted(_patterns(names), key=_rank):
        labelled.setdefault(_label(pattern), []).append(pattern)
    return labelled


def _rank(pattern: str) -> int:
    stem = pattern.removesuffix(".weight")
    return list(KNOWN).index(stem) if stem in KNOWN else len(KNOWN)


def _label(pattern: str) -> str:
    stem = pattern.removesuffix(".weight")
    return KNOWN.get(stem, stem.replace(".{}", ""))


def make_groups(names: Iterable[str], modules: Mapping[str, str] | None = None) -> list[Group]:
    """The default groups of `names`, then those in `modules` (the same label replaces a default group)."""
    names, added = list(names), modules or {}
    of_pattern: dict[str, list[str]] = {}
    for name in names:
        of_pattern.setdefault(_pattern(name), []).append(name)
    groups = []
    for label, patterns in (_labelled(names) | dict(added)).items():
        members: dict[str, int | None] = {}
        if label not in added:  # by the names themselves, which may hold braces and commas
            members = {name: layer_index(name) for pattern in patterns for name in of_pattern[pattern]}
        for pattern in added[label].split(",") if label in added else ():
            try:
                members |= find_weights(pattern, names)
            except ValueError as e:
                raise ValueError(f"module {label!r}: {e}; there are {', '.join(_patterns(names))}") from e
        groups.append(Group(label, members))
    return groups


def _patterns(names: Iterable[str]) -> list[str]:
    """The patterns of `names`: `{}` for the layer, and one pattern for all experts of a tensor."""
    return sorted({_pattern(name) for name in names})


def _pattern(name: str) -> str:
    return NUMBERED.sub(r"\1.{}", EXPERT.sub("", name))
