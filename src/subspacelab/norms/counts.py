"""How many norm layers a family's model has, from its config alone."""

from collections.abc import Mapping
from typing import Any

from subspacelab.norms.family import Extra, Family, Tower


def expected_norms(
    family: Family, config: Mapping[str, Any], found_depths: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Tower -> number of norm layers, per_block * depth + outside.

    The depth is config.json's, else the family's default; `found_depths` (tower -> depth) counts where config.json does
    not name the family, so that its defaults mean nothing. ValueError for a depth that is nowhere.
    """
    return {tower.name: _expected(tower, config, found_depths or {}) for tower in family.towers}


def _expected(tower: Tower, config: Mapping[str, Any], found_depths: Mapping[str, int]) -> int:
    per_block, outside = tower.per_block, tower.outside
    for extra in tower.extras:
        if _is_on(extra, config):
            per_block, outside = per_block + extra.per_block, outside + extra.outside
    if per_block == 0:
        return outside
    depth = next((d for d in (lookup(config, key) for key in tower.depth_keys) if d is not None), None)
    if depth is None:
        depth = found_depths.get(tower.name, tower.default_depth)
    if not isinstance(depth, int):
        keys = " or ".join(tower.depth_keys)
        raise ValueError(f"config.json: {keys} is {depth!r}, needed the number of {tower.name} blocks; restore it")
    return per_block * depth + outside


def _is_on(extra: Extra, config: Mapping[str, Any]) -> bool:
    values = [lookup(config, key, extra) for key in extra.keys]
    return bool(next((v for v in values if v is not extra), extra.default))


def lookup(config: Mapping[str, Any], key: str, missing: Any = None) -> Any:
    """The value of a dotted key, `missing` where there is none."""
    value: Any = config
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return missing
        value = value[part]
    return value
