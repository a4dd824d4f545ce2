"""Embeddings and norm layers of a checkpoint, found from its headers alone, with warnings for doubtful cases."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from subspacelab.checkpoints import Checkpoint
from subspacelab.checkpoints.tensors import canonical_keys, unmerged_adapter
from subspacelab.norms.detection import Detected, detect_family
from subspacelab.norms.families import EmbeddingKind, EmbeddingName, Extra, Family, Section, Tower, value_of
from subspacelab.norms.names import NormName, is_zero_centred, parse_norm, split_block, zero_centred_type


def expected_norms(family: Family, config: Section, found_depths: Mapping[str, int] | None = None) -> dict[str, int]:
    """Tower -> number of norm layers, per_block * depth + outside.

    The depth comes from config.json, or else from the family's default. `found_depths` (tower -> depth) is used if
    config.json does not name the family, because then its defaults do not apply. ValueError if no depth is known.
    """
    return {tower.name: _expected(tower, config, found_depths or {}) for tower in family.towers}


def _expected(tower: Tower, config: Section, found_depths: Mapping[str, int]) -> int:
    per_block, outside = tower.per_block, tower.outside
    for extra in tower.extras:
        if _is_on(extra, tower.section, config):
            per_block, outside = per_block + extra.per_block, outside + extra.outside
    if per_block == 0:
        return outside
    depth = _depth(tower, config)
    if depth is None:
        depth = found_depths.get(tower.name, tower.default_depth)
    if not isinstance(depth, int):
        keys = " or ".join(tower.depth_keys)
        raise ValueError(f"config.json: {keys} is {depth!r}, needed the number of {tower.name} blocks; restore it")
    return per_block * depth + outside + _more(tower, config, depth)


def _more(tower: Tower, config: Section, depth: int) -> int:
    """Additional norm layers of towers with different blocks; ValueError if the config does not determine them."""
    if tower.more is None:
        return 0
    inner = config.get(tower.section)
    try:
        return tower.more(inner if isinstance(inner, Mapping) else config, depth)
    except (TypeError, ValueError, ArithmeticError) as e:
        raise ValueError(f"config.json: the {tower.name} blocks cannot be told apart ({e}); restore it") from e


def _depth(tower: Tower, config: Section) -> Any:
    values = (value_of(config, tower.section, key) for key in tower.depth_keys)
    return next((value for value in values if value is not None), None)


def _is_on(extra: Extra, section: str, config: Section) -> bool:
    values = [value_of(config, section, key, extra) for key in extra.keys]
    return bool(next((v for v in values if v is not extra), extra.default))


# For families whose embeddings are found by name: lookup tables and patch projections by their usual names.
GENERAL_EMBEDDING = re.compile(
    r"(?:.*\.)?(?P<part>wte|wpe|shared|(?:cls|class|register|reg|storage)_tokens?|"
    r"(?!embed_out|embed\w*_(?:proj|mapp))\w*emb(?:ed\w*)?)"
    r"(?:\.(?:proj|projection|linear))?(?:\.weight)?",
    re.IGNORECASE,
)
ROUTER = re.compile(
    r"(?:.*\.)?(?:(?P<experts>\w+)\.gate(?:\.wg)?|(?!modality)\w*router\w*(?:\.\w+)?)(?:\.weight)?", re.IGNORECASE
)
GENERAL_KINDS: tuple[tuple[str, EmbeddingKind], ...] = (
    ("expert", "expert router"),
    ("(^|_)(reg(ister)?|storage)s?(_|$)", "register"),
    ("(^|_)((token_?)?type|segment)s?(_|$)", "token type"),
    ("patch", "patch"),
    ("(^|_)pos|wpe", "position"),
    ("cls|class", "class token"),
    ("tok|word|wte|vocab|shared|^(input_)?emb(ed(ding)?s?)?(_in)?$", "token"),
)
"""Pattern -> kind of embedding; the first pattern found in the name counts; without one it is another table without
tokens."""


@dataclass(frozen=True)
class EmbeddingLayer:
    """An embedding and the layout of its vectors in the stored tensor."""

    name: str
    """Canonical name."""
    key: str
    """Name in the file."""
    kind: EmbeddingKind
    """What the vectors embed."""
    shape: tuple[int, ...]
    """Stored shape."""
    first_id: int
    """Id of the first vector; not 0 for a table that continues another one."""

    @property
    def group(self) -> str:
        """The name with `{}` for the block: the same for the routers of all blocks."""
        return split_block(self.name)[1]

    @property
    def width(self) -> int:
        """Entries of a vector: the last axis; for a patch embedding all axes but the first, a flattened filter."""
        return math.prod(self.shape[1:]) if self.kind == "patch" else self.shape[-1]

    @property
    def num_vectors(self) -> int:
        """Number of vectors: ids, filters or grid cells."""
        return math.prod(self.shape) // max(1, self.width)


@dataclass(frozen=True)
class NormLayer:
    """A norm layer, described by its stored parameters."""

    name: NormName
    """The parts of its canonical name."""
    key: str
    """Name of the scale in the file."""
    bias_key: str | None
    """Name of the bias in the file, if there is one."""
    type: str
    """Judged from the file: LayerNorm with a bias, RMSNorm without, BatchNorm beside running statistics."""
    tower: str
    """Part of the model: text, vision, projector; in an unknown family the name before the block index."""
    zero_centred: bool
    """Whether it multiplies by 1 + w, where w is the stored tensor."""


@dataclass(frozen=True)
class Survey:
    """Facts about a checkpoint that need no data."""

    detected: Detected
    """The family."""
    embeddings: tuple[EmbeddingLayer, ...]
    """Embeddings, in the family's order."""
    norms: tuple[NormLayer, ...]
    """Every norm layer, tower by tower, in the order of depth."""
    warnings: tuple[str, ...]
    """Differences from what the family should have."""


def survey(checkpoint: Checkpoint) -> Survey:
    """Finds family, embeddings and norm layers; reads no data, builds no model."""
    keys = canonical_keys(checkpoint.names)
    detected = detect_family(checkpoint.config, keys)
    norms = _find_norms(checkpoint, keys, detected)
    embeddings = _find_embeddings(checkpoint, keys, detected)
    warnings = [
        *_family_doubts(detected),
        *_unmerged(checkpoint),
        *_missing_embeddings(detected, embeddings),
        *_count_doubts(checkpoint, detected, norms),
        *_type_doubts(detected, norms),
        *_unnamed(checkpoint, keys, norms),
    ]
    return Survey(detected, tuple(embeddings), tuple(norms), tuple(warnings))


def _find_norms(checkpoint: Checkpoint, keys: Mapping[str, str], detected: Detected) -> list[NormLayer]:
    found = []
    model_type = zero_centred_type(checkpoint.config)
    for name, key in keys.items():
        parsed = parse_norm(name, len(checkpoint.info(key).shape))
        if parsed is not None:
            kind = "RMSNorm" if parsed.bias not in keys else "LayerNorm"
            kind = "BatchNorm" if f"{parsed.layer}.running_mean" in keys else kind
            tower = _tower_of(detected, name)
            if tower and not tower.biases and kind == "RMSNorm":
                kind = tower.norm_type
            part = tower.name if tower else parsed.kind.partition(".{}")[0] if parsed.block is not None else "outside"
            zero_centred = is_zero_centred(model_type, parsed.layer, kind)
            found.append(NormLayer(parsed, key, keys.get(parsed.bias), kind, part, zero_centred))
    return sorted(found, key=lambda n: _place(n, detected))


def _place(norm: NormLayer, detected: Detected) -> tuple[int, str, int, str]:
    """Sort key: tower, then block; layers outside the blocks come last."""
    towers = [tower.name for tower in detected.family.towers] if detected.family else []
    rank = towers.index(norm.tower) if norm.tower in towers else len(towers)
    block = norm.name.block
    return rank, norm.tower, 1 << 30 if block is None else block, norm.name.kind


def _tower_of(detected: Detected, name: str) -> Tower | None:
    towers = detected.family.towers if detected.family else ()
    return next((tower for tower in towers if re.match(tower.root, name)), None)


def _find_embeddings(checkpoint: Checkpoint, keys: Mapping[str, str], detected: Detected) -> list[EmbeddingLayer]:
    family = detected.family
    if family is not None and not family.kinds:
        pairs = [(e, name) for e in family.embeddings for name in keys if re.fullmatch(e.pattern, name)]
    else:
        general = sorted(_general_embeddings(keys), key=lambda pair: get_args(EmbeddingKind).index(pair[1]))
        pairs = [(EmbeddingName(kind, name), name) for name, kind in general]
    found = []
    for embedding, name in pairs:
        shape = checkpoint.info(keys[name]).shape
        if len(shape) < 2:
            continue
        before = keys.get(embedding.continues or "")
        first_id = checkpoint.info(before).shape[0] if before else 0
        found.append(EmbeddingLayer(name, keys[name], embedding.kind, shape, first_id))
    return found


def _general_embeddings(keys: Mapping[str, str]) -> Iterator[tuple[str, EmbeddingKind]]:
    """The embedding tables of an unknown family, by their names; a gate is a router if there are experts beside it."""
    with_experts = {name.partition(".experts.")[0].rpartition(".")[2] for name in keys if ".experts." in name}
    for name in keys:
        router = ROUTER.fullmatch(name)
        if router and (router["experts"] is None or router["experts"] in with_experts):
            yield name, "expert router"
        elif found := GENERAL_EMBEDDING.fullmatch(name):
            yield name, _general_kind(name[: found.end("part")])


def _general_kind(name: str) -> EmbeddingKind:
    part = name.rpartition(".")[2]
    return next((kind for pattern, kind in GENERAL_KINDS if re.search(pattern, part, re.IGNORECASE)), "other")


def _family_doubts(detected: Detected) -> list[str]:
    if detected.family is not None:
        return []
    return [f"unknown family ({detected.found_by}): found by names alone, and no formula to check the counts against"]


def _unmerged(checkpoint: Checkpoint) -> list[str]:
    first = unmerged_adapter(checkpoint.names)
    if first is None:
        return []
    return [f"holds an adapter that is not merged, such as {first}: the figures are of the weights without it"]


def _missing_embeddings(detected: Detected, embeddings: list[EmbeddingLayer]) -> list[str]:
    known, kinds = (detected.family.embeddings, detected.family.kinds) if detected.family else ((), ())
    missing = [e for e in known if not any(re.fullmatch(e.pattern, layer.name) for layer in embeddings)]
    absent = [kind for kind in kinds if kind not in {layer.kind for layer in embeddings}]
    return [
        *(f"{detected.model_type}: no {e.kind} embedding under a name like {e.pattern}" for e in missing),
        *(f"{detected.model_type}: no {kind} embedding under any of the usual names" for kind in absent),
    ]


def _count_doubts(checkpoint: Checkpoint, detected: Detected, norms: list[NormLayer]) -> list[str]:
    if detected.family is None:
        return []
    depths = {}
    if not checkpoint.config.get("model_type"):
        blocks = [(n.tower, n.name.block) for n in norms if n.name.block is not None]
        depths = {tower: 1 + max(b for t, b in blocks if t == tower) for tower, _ in blocks}
    try:
        expected = expected_norms(detected.family, checkpoint.config, depths)
    except ValueError as e:
        return [f"the count of norm layers cannot be checked: {e}"]
    towers = {tower.name: tower for tower in detected.family.towers}
    found = Counter(n.tower for n in norms if n.tower not in towers or _counts(n, towers[n.tower], checkpoint.config))
    names = list(dict.fromkeys([*expected, *found]))
    return [
        f"{name}: {found[name]} norm layers, expected {expected.get(name, 0)} of {detected.family.label} by config.json"
        for name in names
        if found[name] != expected.get(name, 0)
    ]


def _counts(norm: NormLayer, tower: Tower, config: Section) -> bool:
    """Whether this norm layer is in every file of the model."""
    if tower.uncounted is not None and re.fullmatch(tower.uncounted, norm.name.layer):
        return False
    depth = _depth(tower, config)
    return not (tower.predicts_ahead and isinstance(depth, int) and (norm.name.block or 0) >= depth)


def _type_doubts(detected: Detected, norms: list[NormLayer]) -> list[str]:
    towers = detected.family.towers if detected.family else ()
    stream = [n for n in norms if not n.name.is_inner]  # those of an attention may be of another type
    wrong = [(tower, n) for tower in towers for n in stream if n.tower == tower.name and n.type != tower.norm_type]
    counts = Counter((tower.name, tower.norm_type, n.type) for tower, n in wrong)
    return [
        f"{name}: {count} norm layers are {found} by their stored parameters, where this family has {known}"
        for (name, known, found), count in counts.items()
    ]


def _unnamed(checkpoint: Checkpoint, keys: Mapping[str, str], norms: list[NormLayer]) -> list[str]:
    """An independent check: in the seven families every one-dimensional `.weight` belongs to a norm."""
    taken = {norm.key for norm in norms}
    others = [
        name
        for name, key in keys.items()
        if name.endswith(".weight") and len(checkpoint.info(key).shape) == 1 and key not in taken
    ]
    if not others:
        return []
    return [f"{len(others)} one-dimensional weights are not named as norms and left out, such as {others[0]}"]
