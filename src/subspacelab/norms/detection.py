"""Detection of a checkpoint's family in the table."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from subspacelab.norms.families import Family, Section, Tower
from subspacelab.norms.family_table import FAMILIES
from subspacelab.norms.names import class_stem, type_stem


@dataclass(frozen=True)
class Detected:
    """A checkpoint's family."""

    family: Family | None
    """The family; None if it is not in the table."""
    model_type: str
    """The family's `model_type`, as in config.json if it is there; `unknown` outside the table."""
    found_by: str
    """model_type, architectures or key names; or what is unknown."""


def detect_family(config: Section, names: Collection[str]) -> Detected:
    """The family by `model_type`; without it, by `architectures`; without both, by the canonical `names`.

    A `model_type` outside the table is unknown, even if its keys look familiar: related models differ in what matters
    here.
    """
    model_type = config.get("model_type")
    if model_type:
        family = family_of(str(model_type))
        return Detected(_followed(family, config), str(model_type) if family else "unknown", f"model_type {model_type}")
    for name in config.get("architectures") or ():
        family = next((f for f in FAMILIES if class_stem(name) in map(type_stem, f.model_types)), None)
        if family:
            return Detected(_followed(family, config), family.name, f"architectures {name}")
    family = next((f for f in FAMILIES if f.signature and _has_signature(f, names)), None)
    return Detected(_followed(family, config), family.name if family else "unknown", "the names of its weights")


def family_of(model_type: str) -> Family | None:
    """The row for a `model_type`; None outside the table."""
    return next((f for f in FAMILIES if model_type in f.model_types), None)


def _followed(family: Family | None, config: Section) -> Family | None:
    """The family, with each tower that follows a section of this config replaced by that section's tower."""
    if family is None:
        return None
    return replace(family, towers=tuple(_resolved(tower, config) for tower in family.towers))


def _resolved(tower: Tower, config: Section) -> Tower:
    section = config.get(tower.section)
    model_type = section.get("model_type") if isinstance(section, Mapping) else None
    found = family_of(str(model_type)) if tower.follows else None
    if found is None:
        return tower
    inner = found.towers[0]
    return replace(inner, name=tower.name, root=tower.root, section=tower.section, uncounted=tower.uncounted)


def _has_signature(family: Family, names: Collection[str]) -> bool:
    def there(pattern: str) -> bool:
        return any(re.fullmatch(pattern, name) for name in names)

    return all(there(p) for p in family.signature) and not any(there(p) for p in family.absent)
